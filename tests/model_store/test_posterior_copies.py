"""Posteriors go to folders and to the hub and come back whole, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from abmll.posterior.posteriors import GlobalPosterior
from model_store.errors import (
    CorruptArtifactError,
    FetchError,
    FolderNotEmptyError,
    PublishError,
    StorageFullError,
    UnknownArtifactError,
)
from model_store.posterior_copies import publish_to_folder, publish_to_hub, pull
from model_store.posteriors import ARTIFACT_FILES, load_posterior, save_posterior
from service.cli.main import app
from tests.model_store.fake_hub import FakeHub, hub_in_memory
from tests.model_store.test_posteriors import manifest_of

NAME = "acme/tiny-posterior"


@pytest.fixture
def artifact(prior: GlobalPosterior, tmp_path: Path) -> Path:
    folder = tmp_path / "source" / "tiny-1"
    save_posterior(folder, prior, manifest_of(prior))
    (folder / "notes.pkl").write_bytes(b"not for others")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with hub_in_memory(monkeypatch) as found:
        found.writer = "acme"
        yield found


@pytest.fixture
def published(hub: FakeHub, artifact: Path) -> FakeHub:
    publish_to_hub(artifact, NAME, private=False, message="The first")
    return hub


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in ARTIFACT_FILES}


def same(one: Path, other: Path) -> bool:
    return torch.equal(load_posterior(one).prior.values, load_posterior(other).prior.values)


# ---- folders -------------------------------------------------------------------------------------


def test_a_folder_gets_the_artifact_and_nothing_else(artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "copy"
    copied = publish_to_folder(artifact, out)
    assert (copied.manifest.id, copied.place, copied.origin) == ("tiny-1", str(out), str(artifact))
    assert {path.name for path in out.iterdir()} == set(ARTIFACT_FILES)
    assert contents(out) == contents(artifact)
    pulled = pull(str(out), tmp_path / "pulled", digest=copied.manifest.digest.upper())
    assert pulled.manifest == load_posterior(artifact).manifest
    assert same(tmp_path / "pulled", artifact)


@pytest.mark.parametrize("damage", ["tensors", "manifest"])
def test_a_damaged_artifact_is_neither_published_nor_kept(
    artifact: Path, tmp_path: Path, damage: str, hub: FakeHub
) -> None:
    if damage == "tensors":
        data = bytearray((artifact / "posterior.safetensors").read_bytes())
        data[-1] ^= 1
        (artifact / "posterior.safetensors").write_bytes(data)
    else:
        (artifact / "manifest.json").write_text("{}")
    for attempt in (
        lambda: publish_to_folder(artifact, tmp_path / "out"),
        lambda: publish_to_hub(artifact, NAME, private=False, message=""),
        lambda: pull(str(artifact), tmp_path / "out"),
    ):
        with pytest.raises(CorruptArtifactError, match="tiny-1"):
            attempt()
    assert not (tmp_path / "out").exists()
    assert hub.requests == []


def test_a_folder_that_has_something_is_left_alone(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    for attempt in (publish_to_folder, lambda source, out: pull(str(source), out)):
        with pytest.raises(FolderNotEmptyError):
            attempt(artifact, tmp_path)
    assert (tmp_path / "mine").read_text() == "kept"


# ---- the hub -------------------------------------------------------------------------------------


def test_the_hub_gets_one_commit_and_gives_it_back(
    published: FakeHub, artifact: Path, tmp_path: Path
) -> None:
    assert published.messages == ["The first"]
    sha, files = published.repositories[NAME].at("main") or ("", {})
    assert {name: data for name, data in files.items() if name != ".gitattributes"} == contents(artifact)
    copied = pull(NAME, tmp_path / "out")
    assert copied.origin == f"{NAME}@{sha}"
    assert contents(tmp_path / "out") == contents(artifact)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


def test_a_repository_is_private_only_when_it_is_new_and_asked_for(hub: FakeHub, artifact: Path) -> None:
    for private in (True, False):
        publish_to_hub(artifact, NAME, private=private, message="again")
    assert hub.repositories[NAME].private


def test_a_revision_is_what_it_was(
    published: FakeHub, artifact: Path, prior: GlobalPosterior, tmp_path: Path
) -> None:
    first, _ = published.repositories[NAME].at("main") or ("", {})
    save_posterior(artifact, prior, manifest_of(prior, id="tiny-2"))
    publish_to_hub(artifact, NAME, private=False, message="The second")
    assert pull(f"{NAME}@{first}", tmp_path / "one").manifest.id == "tiny-1"
    assert pull(NAME, tmp_path / "two").manifest.id == "tiny-2"
    with pytest.raises(FetchError, match="there is no such revision"):
        pull(f"{NAME}@gone", tmp_path / "three")


def test_only_files_of_an_artifact_are_downloaded(published: FakeHub, tmp_path: Path) -> None:
    published.repositories[NAME].commit({"model.pkl": b"code", "sub/posterior.safetensors": b"x"})
    published.requests.clear()
    pull(NAME, tmp_path / "out")
    asked = {request.rpartition("/")[2] for request in published.requests if "/resolve/" in request}
    assert asked == set(ARTIFACT_FILES)
    assert not [request for request in published.requests if "sub/" in request]


def test_what_the_hub_holds_is_checked(published: FakeHub, tmp_path: Path) -> None:
    repository = published.repositories[NAME]
    tensors = bytearray((repository.at("main") or ("", {}))[1]["posterior.safetensors"])
    tensors[-1] ^= 1
    with pytest.raises(CorruptArtifactError, match=f"{NAME}@.* has the digest"):
        pull(NAME, tmp_path / "out", digest="0" * 64)
    repository.commit({"posterior.safetensors": bytes(tensors)})
    with pytest.raises(CorruptArtifactError, match="the tensors of tiny-posterior do not match the digest"):
        pull(NAME, tmp_path / "out")
    published.repositories["acme/other"] = other = type(repository)()
    other.commit({"model.safetensors": b"x"})
    with pytest.raises(
        UnknownArtifactError, match=r"acme/other@main holds no posterior: it has no manifest\.json"
    ):
        pull("acme/other", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        (
            {"posterior.safetensors": 3 * 10**9},
            CorruptArtifactError,
            "has 3000 MB, more than the limit of 2048 MB",
        ),
        (
            {"manifest.json": 10**8},
            CorruptArtifactError,
            "manifest.json of acme/tiny-posterior@main has 100 MB",
        ),
        ({"posterior.safetensors": 2 * 10**9}, StorageFullError, "MB are free"),
    ],
)
def test_what_is_too_large_is_not_downloaded(
    published: FakeHub, tmp_path: Path, sizes: dict[str, int], error: type[Exception], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10**9}))
    published.sizes = sizes
    published.requests.clear()
    with pytest.raises(error, match=message):
        pull(NAME, tmp_path / "out")
    assert not [request for request in published.requests if "/resolve/" in request]


def test_a_hub_that_lies_about_a_size_is_found_out(published: FakeHub, tmp_path: Path) -> None:
    published.sizes = {"posterior.safetensors": 10}
    with pytest.raises(CorruptArtifactError, match="more than the limit"):
        pull(NAME, tmp_path / "out", max_bytes=100)


def test_failures_of_the_hub_are_one_line_with_a_remedy(
    published: FakeHub, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FetchError, match=r"acme/absent@main was not pulled: the hub says 401.*HF_TOKEN"):
        pull("acme/absent", tmp_path / "out")
    with pytest.raises(PublishError, match="tiny-1 was not published to globex/it: the hub says 403"):
        publish_to_hub(artifact, "globex/it", private=False, message="")
    published.unreachable = True
    with pytest.raises(FetchError, match="Name or service not known"):
        pull(NAME, tmp_path / "out")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE is set"):
        pull(NAME, tmp_path / "out")
    for name in ("nothing", "acme/tiny@main", "../etc"):
        with pytest.raises(PublishError, match="names no repository"):
            publish_to_hub(artifact, name, private=False, message="")
    with pytest.raises(UnknownArtifactError, match="neither a folder nor"):
        pull("nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- the commands --------------------------------------------------------------------------------


def run(*arguments: object) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["posterior", *map(str, arguments)])
    return ended.exit_code, " ".join(ended.output.split())


def test_the_commands_say_what_was_copied_and_how_to_serve_it(
    hub: FakeHub, artifact: Path, tmp_path: Path
) -> None:
    code, output = run("publish", artifact, "--hub", NAME, "--private", "--message", "ours")
    assert (code, hub.messages, hub.repositories[NAME].private) == (0, ["ours"], True)
    assert f"is in https://huggingface.co/{NAME}/commit/" in output
    shutil.rmtree(artifact)
    code, output = run("pull", NAME, "--out", tmp_path / "out")
    assert code == 0
    assert "Its base: tiny at sha256:0123 in int8." in output
    assert f"Its digest: {load_posterior(tmp_path / 'out').manifest.digest}" in output
    assert output.endswith(f"abmll serve --posterior {tmp_path / 'out'}")


def test_commands_that_make_no_sense_end_before_anything_is_asked(hub: FakeHub, tmp_path: Path) -> None:
    assert run("publish", "x")[0] == 2
    assert run("publish", "x", "--out", tmp_path / "o", "--hub", NAME)[0] == 2
    assert run("publish", "x", "--out", tmp_path / "o", "--private")[0] == 2
    code, output = run("pull", "acme/tiny", "--out", tmp_path / "o", "--max-mb", 0)
    assert code == 2
    code, output = run("publish", NAME, "--out", tmp_path / "o")
    assert code == 1
    assert f"fetched by `abmll posterior pull {NAME} --out FOLDER`" in output
    assert hub.requests == []
