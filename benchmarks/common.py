"""Code that benchmarks share: the served model, tasks, interleaved timing, and pages of results.

A page says how its results were made.
"""

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
from abmll.posterior.posteriors import GlobalPosterior, TaskPosterior
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
LARGE = 65_536  # bytes of results above which they are compressed


def commit() -> str:
    """Return the short commit of the checkout, with `-dirty` where tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def processor() -> str:
    """Return the name of the processor and the number of its cores in this machine."""
    capabilities = torch.cpu.get_capabilities()
    name = capabilities.get("cpu_name") or platform.processor() or platform.machine()
    return f"{name} ({platform.machine()}), {capabilities.get('num_logical_cores')} cores"


def how_made(module: str) -> str:
    """Return the command, commit and machine of this run of a module, for its page of results."""
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    return f"Command: `{command}`. Commit {commit()}. Machine: {processor()}."


def show_page(text: str, out: Path | None) -> None:
    """Print a page of results, and write it to the file `out` if there is one."""
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, "utf-8")


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser without arguments, whose help is the text of a module."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def arguments(doc: str | None, *, repeats: int = 3, data: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every benchmark has."""
    parser = parser_of(doc)
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
    """Model as a server holds it, and the manifest of its posterior."""

    model: FewShotModel
    manifest: PosteriorManifest

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype that the model computes in."""
        dtype: torch.dtype = self.model.backbone.model.dtype
        return dtype


def untempered(prior: GlobalPosterior) -> TaskPosterior:
    """Return theta without a temperature, to compare answers with code that has none."""
    return TaskPosterior(replace(prior.config, temperature=TemperatureRule()), prior.sites, prior.values)


def load_served(
    posterior: str | None, threads: int, *, total_scores: bool = False, device: str = "cpu"
) -> Served:
    """Load the posterior with its base, template and settings, to run on `threads` threads.

    With `total_scores`, the score of an option is the log-probability of its text under the adapter
    alone, as in the code that ours is compared with.
    """
    torch.set_num_threads(threads)
    loaded = load_posterior(posterior or shipped_posteriors()[0])
    start = Start.of(loaded)
    if total_scores:
        prior = replace(loaded.prior, config=replace(loaded.prior.config, similarity=None))
        start = replace(start, theta=prior, template=replace(start.template, score="total"))
    model = load_model(loaded.manifest.base.id, start, device=device, progress=False).model
    if model.backbone.model.dtype != compute_dtype(device):
        print(f"warning: the base computes in {model.backbone.model.dtype}, not in {compute_dtype(device)}")
    return Served(model, loaded.manifest)


def check_unseen(manifest: PosteriorManifest, names: Sequence[str], collection: Collection) -> None:
    """Raise `LeakError` if the posterior was trained on one of the tasks or on its sentences."""
    trained_on = {row["task"] for row in manifest.training["data"]}
    protocol.check_unseen(manifest.id, trained_on, names, collection.about)


def load_dense(manifest: PosteriorManifest, device: str = "cpu") -> Any:
    """Load a second copy of the posterior's base, with plain linear layers, for a baseline."""
    base = manifest.base
    return load_base(
        base.id, quantisation=base.quantisation, device=device, keep_dequantised=True, progress=False
    ).model


@dataclass(frozen=True)
class Cell:
    """One few-shot problem: support, queries, and the index of the right option of each query."""

    name: str
    support: tuple[Example, ...]
    queries: tuple[Query, ...]
    labels: tuple[int, ...]


def read_cell(data: Path, name: str, shots: int, items: int, seed: int) -> Cell:
    """Read a task in `data`: `shots` examples and its first `items` test items."""
    task = read_task(data / name)
    chosen = task.test[:items]
    labels = tuple(item.options.index(item.output) for item in chosen)
    return Cell(name, draw_support(task.train, shots, seed), tuple(item.query for item in chosen), labels)


def interleaved(arms: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each arm in `repeats` rounds.

    Every round runs every arm once, so that a time at which the machine is slow affects all arms.
    The first run of an arm is slower (compiled kernels, page faults): callers warm it up, usually
    by comparing outputs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, run in arms.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each arm."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def probabilities(found: Iterable[Prediction]) -> list[list[float]]:
    """Return the predictive of each prediction."""
    return [list(prediction.predictive.probabilities) for prediction in found]


def largest_difference(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """Return the largest difference of a probability between two lists of distributions."""
    return max(abs(a - b) for p, q in zip(one, other, strict=True) for a, b in zip(p, q, strict=True))


def tolerance(dtype: torch.dtype) -> float:
    """Return the allowed difference of probabilities from batches of different shapes.

    In bf16 the untempered answers of PEFT itself differ by up to .027 between batches of 1 and of
    32 rows (128 inputs of two tasks).
    """
    return 1e-3 if dtype == torch.float32 else 0.05


def check_close(what: str, difference: float, allowed: float) -> str:
    """Return a sentence for the report.

    Raises `SystemExit` where outputs differ: a comparison of their times would mean nothing.
    """
    sentence = f"{what}: largest difference {difference:.1e} (allowed {allowed:g})"
    if not difference <= allowed:
        raise SystemExit(f"outputs differ, nothing is timed. {sentence}")
    print(sentence, flush=True)
    return sentence


def resident_and_peak_bytes() -> tuple[int, int]:
    """Return this process's resident and peak bytes, since its start or `reset_peak` (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    resident, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return resident, peak


def reset_peak() -> None:
    """Start a new peak of resident memory (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; floats have three significant digits."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join(lines)


def _module(script: Path) -> str:
    """Return the name of a script, or of the package that it starts."""
    return script.parent.name if script.stem == "__main__" else script.stem


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
    *,
    show: bool = True,
) -> Path:
    """Write `NAME.md` and `NAME.json`, and return the path of the first.

    Both hold the results and the command, commit, seed and machine that they come from. Data of
    more than `LARGE` bytes are compressed: `NAME.json.gz`. With `show`, the page is printed too.
    """
    folder = QUICK_RESULTS if options.quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "command": f"python -m benchmarks.{_module(Path(sys.argv[0]))} {shlex.join(sys.argv[1:])}".strip(),
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
    if show:
        print(f"\n{text}")
    return folder / f"{name}.md"
