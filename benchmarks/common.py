"""What the benchmarks share: the served model, tasks, interleaved timing, and results that say how they were made."""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from abmll.meta.collection import Collection
from abmll.model import FewShotModel
from abmll.posterior.config import TemperatureRule
from abmll.posterior.posteriors import TaskPosterior
from abmll.prediction.run import Prediction
from abmll.text.draws import draw_support
from abmll.text.files import read_task
from abmll.text.tasks import Example, Query
from lab.evaluation import protocol
from model_store.models import Start, load_model
from model_store.posteriors import PosteriorManifest, load_posterior, shipped_posteriors
from model_store.pretrained.bases import load_base
from model_store.pretrained.convert import compute_dtype

RESULTS = Path("benchmarks/results")
QUICK_RESULTS = Path("runs/quick")
LARGE = 65_536


def commit() -> str:
    """The checkout's commit, short; with `-dirty` where tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def processor() -> str:
    """The processor's name and how many of its cores this machine has."""
    capabilities = torch.cpu.get_capabilities()
    name = capabilities.get("cpu_name") or platform.processor() or platform.machine()
    return f"{name} ({platform.machine()}), {capabilities.get('num_logical_cores')} cores"


def arguments(doc: str | None, *, repeats: int = 3, data: bool = False) -> argparse.ArgumentParser:
    """A parser with the arguments that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes; writes to runs/quick")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--posterior", default=None, help="id or folder; by default the shipped one")
    if data:
        parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    return parser


@dataclass(frozen=True)
class Served:
    """The model as a server holds it, and the manifest of its posterior."""

    model: FewShotModel
    manifest: PosteriorManifest

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        dtype: torch.dtype = self.model.backbone.model.dtype
        return dtype

    @property
    def untempered(self) -> TaskPosterior:
        """Theta as it is and without a temperature, for comparing answers with code that knows none."""
        prior = self.model.prior
        return TaskPosterior(replace(prior.config, temperature=TemperatureRule()), prior.sites, prior.values)


def load_served(posterior: str | None, threads: int, *, total_scores: bool = False) -> Served:
    """The posterior's base, with its template and settings, on `threads` threads.

    With `total_scores`, options score the log-probability of their text under the adapter and nothing else, as in the code that
    ours is compared with.
    """
    torch.set_num_threads(threads)
    loaded = load_posterior(posterior or shipped_posteriors()[0])
    start = Start.of(loaded)
    if total_scores:
        prior = replace(loaded.prior, config=replace(loaded.prior.config, similarity=None))
        start = replace(start, theta=prior, template=replace(start.template, score="total"))
    model = load_model(loaded.manifest.base.id, start, progress=False).model
    if model.backbone.model.dtype != compute_dtype("cpu"):
        print(f"warning: the base computes in {model.backbone.model.dtype}, not in {compute_dtype('cpu')}")
    return Served(model, loaded.manifest)


def check_unseen(manifest: PosteriorManifest, names: Sequence[str], collection: Collection) -> None:
    """Raise `LeakError` if the posterior was trained on one of the tasks, or on one that shares its sentences."""
    trained_on = {row["task"] for row in manifest.training["data"]}
    protocol.check_unseen(manifest.id, trained_on, names, collection.about)


def load_dense(manifest: PosteriorManifest) -> Any:
    """Another copy of the posterior's base with plain linear layers, untouched by our code, for a baseline."""
    base = manifest.base
    return load_base(base.id, quantisation=base.quantisation, keep_dequantised=True, progress=False).model


@dataclass(frozen=True)
class Cell:
    """One few-shot problem: support, queries, and the queries' right options."""

    name: str
    support: tuple[Example, ...]
    queries: tuple[Query, ...]
    labels: tuple[int, ...]


def read_cell(data: Path, name: str, shots: int, items: int, seed: int) -> Cell:
    """`shots` examples and the first `items` test items of a task of the collection in `data`."""
    task = read_task(data / name)
    chosen = task.test[:items]
    labels = tuple(item.options.index(item.output) for item in chosen)
    return Cell(name, draw_support(task.train, shots, seed), tuple(item.query for item in chosen), labels)


def interleaved(arms: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each arm in `repeats` rounds: every round runs every arm once, so slow spells of the machine hit all.

    What an arm does first is slower (compiled kernels, page faults), so callers warm it up, usually by comparing outputs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, run in arms.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each arm."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def probabilities(found: Iterable[Prediction]) -> list[list[float]]:
    """The predictive distributions."""
    return [list(prediction.predictive.probabilities) for prediction in found]


def largest_difference(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """The largest difference between two lists of distributions."""
    return max(abs(a - b) for p, q in zip(one, other, strict=True) for a, b in zip(p, q, strict=True))


def tolerance(dtype: torch.dtype) -> float:
    """How far probabilities may lie apart that were computed in batches of other shapes."""
    return 1e-3 if dtype == torch.float32 else 0.03


def check_close(what: str, difference: float, allowed: float) -> str:
    """A sentence for the report. Raises `SystemExit` where outputs differ: their times would not compare."""
    sentence = f"{what}: largest difference {difference:.1e} (allowed {allowed:g})"
    if not difference <= allowed:
        raise SystemExit(f"outputs differ, nothing is timed. {sentence}")
    print(sentence, flush=True)
    return sentence


def resident_and_peak_bytes() -> tuple[int, int]:
    """Memory that this process has resident, and the most it had since its start or `reset_peak` (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    resident, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return resident, peak


def reset_peak() -> None:
    """Count the peak from here on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; floats with three significant digits."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def write_results(
    name: str,
    title: str,
    about: Sequence[str],
    tables: Sequence[str],
    data: Mapping[str, Any],
    options: argparse.Namespace,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write `NAME.md` and `NAME.json`: what was found, and the command, commit, seed and machine it comes from.

    Data of more than `LARGE` bytes are compressed: `NAME.json.gz`.
    """
    folder = QUICK_RESULTS if options.quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "command": f"python -m benchmarks.{Path(sys.argv[0]).stem} {shlex.join(sys.argv[1:])}".strip(),
        "commit": commit(),
        "seed": options.seed,
        "machine": processor(),
        "torch": torch.__version__,
        "threads": options.threads,
        "dtype": str(dtype).removeprefix("torch.") if dtype else "",
    }
    how = (
        f"Command: `{made['command']}`. Commit {made['commit']}. Seed {made['seed']}. Machine: {made['machine']}, "
        f"torch {made['torch']}, {made['threads']} thread(s), {made['dtype'] or 'no model in this process'}. "
        f"Medians of {options.repeats} interleaved repeats where times are compared."
    )
    text = "\n\n".join([f"# {title}", *about, how, *tables]) + "\n"
    (folder / f"{name}.md").write_text(text)
    content = (json.dumps({"made": made, **data}, indent=1) + "\n").encode()
    if len(content) > LARGE:
        (folder / f"{name}.json.gz").write_bytes(gzip.compress(content, mtime=0))
    else:
        (folder / f"{name}.json").write_bytes(content)
    print(f"\n{text}")
    return folder / f"{name}.md"
