"""Fetch tasks: download their files, read them with the library `datasets`, write a collection."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download

from abmll.errors import AbmllError
from abmll.seeds import derive_seed
from abmll.text.tasks import Example
from lab.task_sources.conversion import task_examples
from lab.task_sources.manifest import Labels, TaskSource, stated
from model_store.errors import ChecksumError, FetchError
from model_store.hub import hub_failures
from model_store.progress import Report, no_report
from model_store.storage import file_sha256, refusal_is_an_error, staged, write_durably

MAX_FILE_BYTES = 256 * 10**6
MAX_ROWS = 50_000
"""Of larger files, so many rows are drawn by the seed."""
_INDEX = "tasks.json"


@dataclass(frozen=True)
class Files:
    """Files of a source on this machine by their names there, and the commit that they are of."""

    commit: str
    paths: dict[str, Path]


def fetch_task(
    name: str, source: TaskSource, out: Path, *, mirror: Path | None = None, report: Report = no_report
) -> dict[str, Any]:
    """Write the task into the collection at `out`, and return its entry of `tasks.json`.

    Files come from the hub, or from `mirror`/OWNER/NAME, which has them under the same names.
    Raises `FetchError`, `ChecksumError` for a file of another digest, `AbmllError` for rows that
    are not as the source says, and as `staged`.
    """
    files = _in_mirror(name, source, mirror) if mirror else _from_hub(name, source, report)
    digests = {file: file_sha256(path) for file, path in files.paths.items()}
    for file, expected in source.sha256.items():
        if digests[file] != expected:
            raise ChecksumError(f"task {name}: {file} has SHA-256 {digests[file]}, expected {expected}")
    report(f"Reading {name}", 0, 0)
    with tempfile.TemporaryDirectory() as cache:
        train, test = (
            _rows(name, source, [files.paths[file] for file in side], Path(cache))
            for side in (source.train, source.test)
        )
        trained, tested = task_examples(name, source, train, test)
    with staged(out / name, f"task {name}") as folder:
        _write(folder / "train.jsonl", name, trained)
        _write(folder / "test.jsonl", name, tested)
    entry = {
        "task": name,
        **stated(source),
        "sources": [{"repository": source.repository, "commit": files.commit, "sha256": digests}],
        "n_train": len(trained),
        "n_test": len(tested),
        "options": list(trained[0].options) if source.kind == "classification" else None,
    }
    _index(out, entry)
    return entry


def fetched(out: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of the collection at `out` by task, those whose folder is there.

    Raises `AbmllError` where `tasks.json` is not of this form.
    """
    index = out / _INDEX
    if not index.is_file():
        return {}
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))["tasks"]
        return {entry["task"]: entry for entry in entries if (out / entry["task"] / "train.jsonl").is_file()}
    except (ValueError, KeyError, TypeError) as error:
        raise AbmllError(f"{index} is not a list of tasks: name another folder with --out") from error


def _index(out: Path, entry: Mapping[str, Any]) -> None:
    entries = {**fetched(out), entry["task"]: dict(entry)}
    text = json.dumps({"tasks": [entries[name] for name in sorted(entries)]}, indent=1, ensure_ascii=False)
    write_durably(out / _INDEX, text + "\n")


def _in_mirror(name: str, source: TaskSource, mirror: Path) -> Files:
    paths = {file: mirror / source.repository / file for file in (*source.train, *source.test)}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        raise FetchError(f"task {name}: there is no {missing[0]}")
    return Files(f"mirror {mirror}", paths)


def _from_hub(name: str, source: TaskSource, report: Report) -> Files:
    """Download the files, all of one commit. Asks for their sizes first."""
    repository = f"{source.repository}@{source.revision}"
    needed = (*source.train, *source.test)
    with hub_failures(FetchError, f"task {name}: {repository} was not downloaded"):
        info = HfApi().dataset_info(source.repository, revision=source.revision, files_metadata=True)
        sizes = {file.rfilename: file.size for file in info.siblings or ()}
        for file in needed:
            size = sizes.get(file)
            if size is None:
                raise FetchError(f"task {name}: {repository} has no file {file}")
            if size > MAX_FILE_BYTES:
                raise FetchError(
                    f"task {name}: {file} has {size / 1e6:.0f} MB, more than {MAX_FILE_BYTES / 1e6:.0f} MB"
                )
        commit = str(info.sha)
        paths = {}
        with refusal_is_an_error(repository):
            for file in needed:
                report(f"Downloading {repository} {file}", 0, 0)
                found = hf_hub_download(source.repository, file, repo_type="dataset", revision=commit)
                paths[file] = Path(found)
    return Files(commit, paths)


def _rows(name: str, source: TaskSource, paths: Sequence[Path], cache: Path) -> Iterable[Mapping[str, Any]]:
    """Return the rows of some files; of many, `MAX_ROWS` that the name of the task draws."""
    if not paths:
        return ()
    from datasets import load_dataset  # noqa: PLC0415

    with _quiet_datasets():
        try:
            rows = load_dataset(
                source.format, data_files=[str(path) for path in paths], split="train", cache_dir=str(cache)
            )
        except Exception as error:  # the library raises many kinds, one for each format
            cause = " ".join(str(error.__cause__ or error).split())
            raise AbmllError(f"task {name}: {paths[0].name} is no {source.format} file: {cause}") from error
        if len(rows) > MAX_ROWS:
            rows = rows.shuffle(seed=derive_seed(name, "rows") % 2**32).select(range(MAX_ROWS))
    if isinstance(source.output, Labels):
        _check_classes(name, source.output, rows.features.get(source.output.label))
    return rows  # type: ignore[no-any-return]


def _check_classes(name: str, output: Labels, column: Any) -> None:
    """Raise `AbmllError` where a column of numbered classes has not as many as there are names."""
    count = getattr(column, "num_classes", None)
    if count is not None and count != len(output.names):
        raise AbmllError(
            f"task {name}: `{output.label}` has {count} classes, and sources.yaml names {len(output.names)}"
        )


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Keep the progress bars of `datasets` from mixing with ours."""
    import datasets  # noqa: PLC0415

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _write(file: Path, name: str, examples: Iterable[Example]) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for example in examples:
            row = {
                "task": name,
                "input": example.input,
                "output": example.output,
                "options": list(example.options),
            }
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
