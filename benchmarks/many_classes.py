"""Measure what hundreds of classes cost: the memory and the seconds of a fit and of one input.

    python -m benchmarks.many_classes --classes 8 150 300
    python -m benchmarks.many_classes --classes 300 --steps 2   # the other steps are estimated

There is one example of each class, of random words: times depend on lengths, not on meaning.
Seconds are those of the processor, of one thread, so that other work on the machine counts little.
"""

from __future__ import annotations

import ctypes
import gc
import time
from dataclasses import asdict, dataclass, replace

from benchmarks import common
from benchmarks.common import Served
from benchmarks.scaling import Point, make

WORDS = 12


@dataclass(frozen=True)
class Cost:
    """Processor seconds of a fit and of one input, and the peak memory beside the model."""

    classes: int
    prepare_seconds: float
    step_seconds: float
    input_seconds: float
    fit_gb: float
    input_gb: float

    def fit_seconds(self, steps: int) -> float:
        """Return the seconds of a fit with so many steps."""
        return self.prepare_seconds + steps * self.step_seconds


def _resident() -> int:
    """Return this process's bytes after giving free ones back (glibc), and start a new peak."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    common.reset_peak()
    return common.resident_and_peak_bytes()[0]


def measure(served: Served, classes: int, steps: int, samples: int, seed: int) -> Cost:
    """Fit to one example of each class with `steps` steps, and answer one input."""
    support, queries, _ = make(Point(classes, classes, samples, WORDS), _Sizes(seed))
    model = served.model
    resident = _resident()
    times = [time.process_time()]
    run = model.begin_adapt(support, replace(model.defaults, steps=steps))
    times.append(time.process_time())
    while not run.done:
        model.step([run])
    times.append(time.process_time())
    fit_gb = (common.resident_and_peak_bytes()[1] - resident) / 1e9
    posterior = run.result().posterior
    del run
    resident = _resident()
    began = time.process_time()
    model.predict(posterior, queries, samples=samples)
    return Cost(
        classes,
        times[1] - times[0],
        (times[2] - times[1]) / steps,
        time.process_time() - began,
        fit_gb,
        (common.resident_and_peak_bytes()[1] - resident) / 1e9,
    )


@dataclass(frozen=True)
class _Sizes:
    """What `make` reads of the options: a seed, and one input."""

    seed: int
    items: int = 1


def main() -> None:
    """Run the benchmark."""
    parser = common.arguments(__doc__, repeats=1)
    parser.add_argument("--classes", type=int, nargs="+", default=[8, 150, 300])
    parser.add_argument("--steps", type=int, help="gradient steps; by default those of the posterior")
    parser.add_argument("--samples", type=int, default=16)
    options = parser.parse_args()
    if options.quick:
        options.classes, options.steps, options.samples = [2, 4], 1, 1
    served = common.load_served(options.posterior, options.threads)
    usual = served.model.defaults.steps
    steps = options.steps or usual
    measure(served, 2, 1, 1, options.seed)  # to warm up
    found = []
    for classes in options.classes:
        found.append(measure(served, classes, steps, options.samples, options.seed))
        print(found[-1], flush=True)
    head = ["classes and examples", "prepare s", "a step s", f"fit of {usual} steps s", "fit GB"]
    rows = [
        [cost.classes, cost.prepare_seconds, cost.step_seconds, cost.fit_seconds(usual), cost.fit_gb,
         cost.input_seconds, cost.input_gb]
        for cost in found
    ]  # fmt: skip
    about = (
        f"One example a class, of {WORDS} words; classes of two or three words; one input with "
        f"{options.samples} samples. {steps} of the {usual} steps were run. Seconds are of the processor; memory is the "
        "peak beside what the process had before."
    )
    table = common.table([*head, "one input s", "one input GB"], rows)
    data = {"steps_run": steps, "steps_usual": usual, "costs": [asdict(cost) for cost in found]}
    title = "What many classes cost"
    common.write_results("many_classes", title, [about], [table], data, options, served.dtype)


if __name__ == "__main__":
    main()
