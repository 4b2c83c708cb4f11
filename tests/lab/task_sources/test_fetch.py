"""Tasks are fetched from small local copies in each format, and from a hub in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from abmll.errors import AbmllError
from abmll.meta.collection import Collection
from lab.commands.tasks import tasks as command
from lab.task_sources import fetch
from lab.task_sources.fetch import fetch_task
from lab.task_sources.manifest import FreeText, Labels, Sources, TaskSource
from model_store.errors import ChecksumError, FetchError
from model_store.storage import file_sha256
from tests.model_store.fake_hub import FakeHub, Repository, hub_in_memory

ROWS = [{"text": f"input, no. {n}", "label": n % 2, "answers": [f"answer {n}"]} for n in range(30)]
YES_NO = Labels("label", ("no", "yes"))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table.drop(["answers"]), path)
    else:
        pyarrow.parquet.write_table(table, path)


def source(format: str = "parquet", **values: Any) -> TaskSource:
    return TaskSource(
        **{
            "repository": "acme/data",
            "revision": "main",
            "format": format,
            "train": (f"set/train.{format}",),
            "input": "{text}",
            "output": YES_NO,
            "licence": "CC0",
            **values,
        }
    )


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    for suffix in ("parquet", "csv", "json"):
        write(tmp_path / f"mirror/acme/data/set/train.{suffix}", ROWS)
    return tmp_path / "mirror"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mirror: Path) -> Iterator[FakeHub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with hub_in_memory(monkeypatch) as found:
        found.repositories["acme/data"] = Repository()
        files = (mirror / "acme/data").rglob("*.*")
        found.repositories["acme/data"].commit(
            {path.relative_to(mirror / "acme/data").as_posix(): path.read_bytes() for path in files}
        )
        yield found


@pytest.mark.parametrize("format", ["parquet", "csv", "json"])
def test_each_format_gives_the_same_task(mirror: Path, tmp_path: Path, format: str) -> None:
    entry = fetch_task("mine", source(format), tmp_path / "out", mirror=mirror)
    file = mirror / f"acme/data/set/train.{format}"
    assert entry["sources"][0]["sha256"] == {f"set/train.{format}": file_sha256(file)}
    collection = Collection.open(tmp_path / "out")
    assert collection.about["mine"]["licence"] == "CC0"
    (task,) = collection.read(["mine"])
    assert (len(task.train), len(task.test)) == (entry["n_train"], entry["n_test"]) == (20, 10)
    expected = {(row["text"], ("no", "yes")[row["label"]]) for row in ROWS}
    assert {(e.input, e.output) for e in (*task.train, *task.test)} == expected


def test_lists_and_several_files_are_read(mirror: Path, tmp_path: Path) -> None:
    write(mirror / "acme/data/set/more.parquet", [{**ROWS[0], "text": "more"}])
    found = source(train=("set/more.parquet",), test=("set/train.parquet",), output=FreeText("answers"))
    entry = fetch_task("free", found, tmp_path / "out", mirror=mirror)
    (task,) = Collection.open(tmp_path / "out").read(["free"])
    assert [(e.input, e.output) for e in task.train] == [("more", "answer 0")]
    assert (entry["n_test"], entry["type"], entry["options"]) == (30, "generation", None)


def test_of_many_rows_the_name_draws_some(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MAX_ROWS", 12)
    counts = fetch_task("mine", source(), tmp_path / "out", mirror=mirror)
    assert (counts["n_train"], counts["n_test"]) == (8, 4)
    again = fetch_task("mine", source(), tmp_path / "again", mirror=mirror)
    lines = [(tmp_path / folder / "mine/train.jsonl").read_text() for folder in ("out", "again")]
    assert lines[0] == lines[1]
    assert again == counts


def test_what_is_wrong_names_the_task_and_leaves_nothing(mirror: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(FetchError, match=r"task mine: there is no .*gone\.parquet"):
        fetch_task("mine", source(train=("gone.parquet",)), out, mirror=mirror)
    with pytest.raises(ChecksumError, match="expected 00"):
        fetch_task("mine", source(sha256={"set/train.parquet": "00"}), out, mirror=mirror)
    (mirror / "acme/data/set/train.parquet").write_bytes(b"no parquet")
    with pytest.raises(AbmllError, match=r"task mine: train\.parquet is no parquet file"):
        fetch_task("mine", source(), out, mirror=mirror)
    assert not (out / "mine").exists()


def test_a_column_with_other_classes_than_the_manifest_is_refused(mirror: Path, tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(3)})
    rows = [{"text": row["text"], "label": row["label"]} for row in ROWS]
    file = mirror / "acme/data/set/train.parquet"
    datasets.Dataset.from_list(rows, features=features).to_parquet(file)
    with pytest.raises(AbmllError, match=r"`label` has 3 classes, and sources\.yaml names 2"):
        fetch_task("mine", source(), tmp_path / "out", mirror=mirror)


def test_the_hub_gives_files_of_one_commit(hub: FakeHub, tmp_path: Path) -> None:
    commit = next(iter(hub.repositories["acme/data"].commits))
    entry = fetch_task("mine", source(), tmp_path / "out")
    assert entry["sources"][0]["commit"] == commit
    assert len(Collection.open(tmp_path / "out").read(["mine"])[0].train) == 20
    assert [r for r in hub.requests if "/resolve/" in r][-1].endswith(f"/resolve/{commit}/set/train.parquet")


def test_the_hub_is_refused_in_one_line(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(match: str, **values: Any) -> None:
        with pytest.raises(FetchError, match=match):
            fetch_task("mine", source(**values), tmp_path / "out")

    refused("acme/gone@main was not downloaded: the hub says 401", repository="acme/gone")
    refused("there is no such revision", revision="gone")
    refused("has no file gone", train=("gone",))
    hub.sizes = {"set/train.parquet": 10**9}
    refused("has 1000 MB, more than 256 MB")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE is set")


# ---- the command ---------------------------------------------------------------------------------

MANIFEST = """
tasks:
  one: &one {repository: acme/data, revision: main, train: [set/train.parquet], input: "{text}",
             output: {label: label, names: [no, yes]}, licence: CC0}
  two: {<<: *one, train: [set/train.csv], format: csv}
  three: {<<: *one, train: [set/gone.parquet]}
not_covered: {four: nobody has it}
"""


def run(*arguments: object) -> tuple[int, str]:
    ended = CliRunner().invoke(command, list(map(str, arguments)))
    return ended.exit_code, " ".join(ended.output.split())


def test_the_command_goes_on_and_says_what_failed(mirror: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "mine.yaml"
    manifest.write_text(MANIFEST.replace("[no, yes]", "['no', 'yes']"))
    options = ("--out", tmp_path / "out", "--sources", manifest, "--mirror", mirror)
    code, output = run("fetch", *options, "--task", "one")
    assert (code, output) == (0, "one: 20 training and 10 test examples")
    code, output = run("fetch", *options)
    assert code == 1
    assert "one: there two: 20 training and 10 test examples" in output
    assert "error: task three: there is no" in output
    assert "1 of 3 tasks were not fetched." in output
    assert set(Collection.open(tmp_path / "out").about) == {"one", "two"}
    assert run("fetch", *options, "--task", "four") == (
        2,
        "error: task four has no source here: nobody has it",
    )
    code, output = run("list", "--sources", manifest)
    assert code == 0
    assert "four has no source here: nobody has it." in output


def test_the_list_has_every_task_that_ships() -> None:
    code, output = run("list")
    assert code == 0
    for name in Sources.read().not_covered:
        assert f"{name} has no source here" in output
