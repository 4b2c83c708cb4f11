"""Check by JevBench that answers of `POST /v1/systemone` keep the laws of probabilities.

    python -m benchmarks.jevbench_laws
    python -m benchmarks.jevbench_laws --url http://127.0.0.1:8000 --posterior ID

JevBench is a public suite of others: 50 laws in five dimensions, such as that the order of options
or another question in the same call changes no answer. `jevbench check` sends one request, and
`jevbench eval` the mini suite of 1,248. Nothing of ours is trained, tuned or chosen on its cases.

Without `--url`, a server is started. Answers are stored in `runs/jevbench` by posterior, so that a
run that is stopped goes on from there; with `--url`, `--posterior` names the one that is served.
With `--quick`, the suite of one case is sent (43 requests).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.http_server import Server
from model_store.posteriors import load_posterior, shipped_posteriors
from model_store.pretrained.catalogue import DEFAULT_BASE

PROGRAM = Path(sys.executable).with_name("jevbench")
STORED = Path("runs/jevbench")
DIMENSIONS = {
    "REP": "order, wording and type of what is asked",
    "BAT": "independence of what else is asked",
    "MEA": "probabilities that add up",
    "LOG": "what follows from what",
    "CHO": "fewer or more options",
}


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--url", help="a server that is running; without it, one is started")
    parser.add_argument("--suite", default="jevbench-mini")
    options = parser.parse_args()
    if options.quick:
        options.suite = "examples"
    posterior = load_posterior(options.posterior or shipped_posteriors()[0]).manifest
    version = f"{posterior.id}-{posterior.digest[:8]}"
    with ExitStack() as stack:
        url = options.url
        if url is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            serve = ["--posterior", options.posterior] if options.posterior else []
            environment = {"OMP_NUM_THREADS": str(options.threads)}
            url = stack.enter_context(Server(folder / "data", serve, environment=environment)).url
        model = ["--url", f"{url}/v1/systemone", "--model", DEFAULT_BASE]
        checked = _run(["check", *model])
        print(checked, flush=True)
        report = STORED / f"{version}-{options.suite}.json"
        report.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        stored = ["--revision", version, "--cache-dir", str(STORED / "answers"), "--out", str(report)]
        _run(["eval", *model, "--suite", options.suite, "-v", *stored])
        seconds = time.perf_counter() - started
    write(json.loads(report.read_text("utf-8")), checked, posterior.id, seconds, options)


def _run(arguments: list[str]) -> str:
    """Run `jevbench` and return what it prints. Raises `SystemExit` where it does not succeed."""
    done = subprocess.run([PROGRAM, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"jevbench {arguments[0]} ended with {done.returncode}: {done.stdout}")
    return done.stdout.strip()


def write(
    report: dict[str, Any], checked: str, posterior: str, seconds: float, options: argparse.Namespace
) -> None:
    """Write the page of a report."""
    result = report["result"]
    about = (
        f"Posterior `{posterior}`, zero-shot, suite {options.suite} of jevbench {result['jevbench_version']}: "
        f"{result['requests']} requests, {result['cache_hits']} of them answered by an earlier run; this run took "
        f"{seconds:.0f} s.",
        f"`{checked}`",
        "Scores are of 100: the part of the tests in which a law holds within 0.05, averaged over laws, groups and "
        "dimensions. A model that always answers uniformly has 89.4, so a score is read beside the accuracy "
        "in `decisions.md`. Nothing is trained, tuned or chosen on these cases.",
    )
    title, data = "Laws of probabilities, by JevBench", {"scores": report["scores"]}
    common.write_results("jevbench", title, about, tables_of(report["scores"]), data, options)


def tables_of(scores: dict[str, Any]) -> list[str]:
    """Return the table of the dimensions, and that of the laws that do not always hold."""
    rows = [
        [name, DIMENSIONS[name], 100 * value, _interval(scores["ci"].get(name))]
        for name, value in scores["pillars"].items()
    ]
    if scores.get("overall") is not None:
        rows.append(["all", "mean of these", 100 * scores["overall"], _interval(scores["ci"].get("overall"))])
    broken = sorted((value, name) for name, value in scores["relations"].items() if value < 1)
    return [
        common.table(["dimension", "laws of", "score", "95 %"], rows),
        f"## Laws that do not always hold: {len(broken)} of {len(scores['relations'])}",
        common.table(["law", "tests in which it holds, %"], [[name, 100 * value] for value, name in broken]),
    ]


def _interval(ends: Any) -> str:
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}" if ends else "-"


if __name__ == "__main__":
    main()
