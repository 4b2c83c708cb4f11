"""Copies of posterior artifacts: to and from a folder or a repository of the Hugging Face hub.

A copy has the files of an artifact and no others (`ARTIFACT_FILES`). It is read whole and checked
against the digest in its manifest before it is sent, and before it is kept.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from model_store.errors import (
    CorruptArtifactError,
    FetchError,
    PublishError,
    UnknownArtifactError,
)
from model_store.hub import hub_failures
from model_store.posteriors import (
    ARTIFACT_FILES,
    PosteriorManifest,
    load_posterior,
    posterior_folder,
)
from model_store.pretrained.catalogue import HubSource, hub_source
from model_store.progress import Report, no_report
from model_store.storage import (
    refusal_is_an_error,
    require_empty,
    require_free_space,
    staged,
)
from model_store.tensors import TENSORS_FILE

MAX_BYTES = 2048 * 10**6
"""The most bytes of a posterior that is pulled, unless the caller says otherwise."""
_MAX_TEXT_BYTES = 16 * 10**6  # a manifest or a card: those that ship have 0.1 MB


@dataclass(frozen=True)
class Copy:
    """A copy of an artifact: its manifest, where it is now, and where it came from.

    `place` is a folder or the address of a commit. `origin` is a folder or `owner/name@commit`.
    """

    manifest: PosteriorManifest
    place: str
    origin: str


def publish_to_folder(id_or_folder: str | Path, target: Path) -> Copy:
    """Copy an artifact, by id or folder, to the folder `target`, which is empty or not there.

    Raises `FolderNotEmptyError`, and as `load_posterior` and `staged`.
    """
    source = posterior_folder(id_or_folder)
    manifest = load_posterior(id_or_folder).manifest
    _copy(source, target, manifest.id)
    return Copy(manifest, str(target), str(source))


def publish_to_hub(id_or_folder: str | Path, repository: str, *, private: bool, message: str) -> Copy:
    """Send an artifact to the hub repository `owner/name`, as one commit with this message.

    The repository is made where it is not there; `private` is for a new one. Raises `PublishError`
    where the hub refuses or does not answer, and as `load_posterior`.
    """
    if hub_source(repository) != HubSource(repository):
        raise PublishError(f"{repository!r} names no repository of the hub: it is owner/name")
    source = posterior_folder(id_or_folder)
    manifest = load_posterior(id_or_folder).manifest
    hub = HfApi()
    with hub_failures(PublishError, f"{manifest.id} was not published to {repository}"):
        hub.create_repo(repository, private=private, exist_ok=True)
        sent = hub.upload_folder(
            repo_id=repository,
            folder_path=source,
            allow_patterns=list(ARTIFACT_FILES),
            commit_message=message,
        )
    return Copy(manifest, sent.commit_url, str(source))


def pull(
    source: str,
    target: Path,
    *,
    digest: str | None = None,
    max_bytes: int = MAX_BYTES,
    report: Report = no_report,
) -> Copy:
    """Copy the artifact in a folder, or in `owner/name[@revision]` of the hub, to a new folder.

    `target` is empty or not there, and stays so unless all is well. `digest` is the one that the
    posterior must have (`PosteriorManifest.digest`). Nothing of more than `max_bytes` is
    downloaded. Raises `UnknownArtifactError`, `CorruptArtifactError` (also for another digest and a
    file that is too large), `FetchError`, `FolderNotEmptyError`, and as `load_posterior`.
    """
    require_empty(target)
    folder = Path(source)
    if folder.is_dir():
        _check_sizes(source, {path.name: path.stat().st_size for path in folder.iterdir()}, max_bytes)
        return _kept(folder, target, str(folder), digest)
    hub = hub_source(source)
    if hub is None:
        raise UnknownArtifactError(f"{source!r} is neither a folder nor owner/name[@revision] of the hub")
    with refusal_is_an_error(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pulling-") as parent:
            downloaded = Path(parent, hub.repository.rpartition("/")[2])
            commit = _download(hub, downloaded, max_bytes, report)
            return _kept(downloaded, target, f"{hub.repository}@{commit}", digest)


def _download(hub: HubSource, folder: Path, max_bytes: int, report: Report) -> str:
    """Download the files of an artifact into the new folder, and return the commit they are of."""
    name = f"{hub.repository}@{hub.revision}"
    with hub_failures(FetchError, f"{name} was not pulled"):
        info = HfApi().model_info(hub.repository, revision=hub.revision, files_metadata=True)
    if info.sha is None:
        raise FetchError(f"{name} was not pulled: the hub names no commit")
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    needed = _check_sizes(name, sizes, max_bytes)
    require_free_space(folder.parent, 2 * needed, name)
    report(f"Downloading {name}", 0, 0)
    with hub_failures(FetchError, f"{name} was not pulled"):
        snapshot_download(
            hub.repository, revision=info.sha, allow_patterns=list(ARTIFACT_FILES), local_dir=folder
        )
    _check_sizes(name, {path.name: path.stat().st_size for path in folder.iterdir()}, max_bytes)
    return info.sha


def _check_sizes(name: str, sizes: dict[str, int | None], max_bytes: int) -> int:
    """Return the bytes of an artifact whose files have these sizes.

    Raises `UnknownArtifactError` where a file is missing, and `CorruptArtifactError` where one is
    too large or nobody says how large it is. The card may be missing.
    """
    missing = [file for file in ARTIFACT_FILES[:2] if file not in sizes]
    if missing:
        raise UnknownArtifactError(f"{name} holds no posterior: it has no {' and no '.join(missing)}")
    total = 0
    for file in ARTIFACT_FILES:
        size = sizes.get(file, 0)
        limit = max_bytes if file == TENSORS_FILE else _MAX_TEXT_BYTES
        if size is None:
            raise CorruptArtifactError(f"nobody says how large {file} of {name} is")
        if size > limit:
            remedy = "; --max-mb sets it" if file == TENSORS_FILE else ""
            raise CorruptArtifactError(
                f"{file} of {name} has {size / 1e6:.0f} MB, more than the limit of {limit / 1e6:.0f} MB{remedy}"
            )
        total += size
    return total


def _kept(folder: Path, target: Path, origin: str, digest: str | None) -> Copy:
    """Check the artifact in `folder` and copy it to `target`."""
    manifest = load_posterior(folder).manifest
    if digest is not None and manifest.digest != digest.lower():
        raise CorruptArtifactError(f"{origin} has the digest {manifest.digest}, not {digest}")
    _copy(folder, target, manifest.id)
    return Copy(manifest, str(target), origin)


def _copy(source: Path, target: Path, id: str) -> None:
    require_empty(target)
    with staged(target, f"posterior {id}") as staging:
        for name in ARTIFACT_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, staging / name)
