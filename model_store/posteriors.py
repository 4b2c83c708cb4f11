"""Posterior artifacts: a folder with a global posterior's tensors, a manifest, and a model card.

    posterior.safetensors   the tensors, named `layers.15.q.mean.A` and so on
    manifest.json           `PosteriorManifest`
    README.md               a model card of the manifest

Those that ship with this package lie in `posteriors/<id>/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from abmll.decoder.layout import Site
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.posteriors import GlobalPosterior
from model_store.card import model_card
from model_store.errors import CorruptArtifactError, UnknownArtifactError, UnsupportedFormatError
from model_store.pretrained.catalogue import hub_source
from model_store.pretrained.identity import BaseIdentity
from model_store.storage import finite_json, refusal_is_an_error, staged
from model_store.tensors import (
    TENSORS_FILE,
    posterior_digest,
    read_tensors,
    sites_from_json,
    sites_to_json,
    write_tensors,
)

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_CARD = "README.md"
ARTIFACT_FILES = (_MANIFEST, TENSORS_FILE, _CARD)
"""The files of an artifact. A copy of it has no others."""
_SHIPPED = Path(__file__).parent / "posteriors"
DEFAULT_POSTERIORS = {"smollm2-135m-instruct": "smollm2-135m-all-tasks-v6"}
"""The posterior that each base is served with by default: base by name, posterior by id.

To serve another by default is a decision of its own, made here: adapters that were made with one
posterior cannot be used with another.
"""

_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class PosteriorManifest:
    """Description of a global posterior: its content, its base, and its training.

    `base` is the base that it was trained on and must be served with. `adapt` and `template` are
    the settings to adapt and to prompt it with (`AdaptSettings` and `PromptTemplate` as plain
    values). `training` (data with licences, commit, seed, machine) and `metrics` may have any keys.
    `digest` is `posterior_digest` of the posterior, which covers `config` and `sites` too.
    """

    id: str
    base: BaseIdentity
    config: PosteriorConfig
    sites: tuple[Site, ...]
    adapt: Mapping[str, Any]
    template: Mapping[str, Any]
    training: Mapping[str, Any]
    metrics: Mapping[str, Any]
    digest: str
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(
        cls,
        prior: GlobalPosterior,
        *,
        id: str,
        base: BaseIdentity,
        adapt: Mapping[str, Any],
        template: Mapping[str, Any],
        training: Mapping[str, Any],
        metrics: Mapping[str, Any],
    ) -> Self:
        """Describe `prior`. Raises `ValueError` as `check_posterior_id`."""
        check_posterior_id(id)
        return cls(
            id=id,
            base=base,
            config=prior.config,
            sites=prior.sites,
            adapt=adapt,
            template=template,
            training=training,
            metrics=metrics,
            digest=posterior_digest(prior),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `manifest.json`."""
        return {
            "format_version": self.format_version,
            "id": self.id,
            "base": self.base.to_json(),
            "config": self.config.to_json(),
            "adapt": dict(self.adapt),
            "template": dict(self.template),
            "digest": self.digest,
            "metrics": dict(self.metrics),
            "training": dict(self.training),
            "sites": sites_to_json(self.sites),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned.

        Raises `UnsupportedFormatError` for a format of another version.
        """
        if values["format_version"] != FORMAT_VERSION:
            found = values["format_version"]
            raise UnsupportedFormatError(
                f"posterior format {found!r} is not the one read here, {FORMAT_VERSION}"
            )
        return cls(
            **{
                **values,
                "base": BaseIdentity.from_json(values["base"]),
                "config": PosteriorConfig.from_json(values["config"]),
                "sites": sites_from_json(values["sites"]),
            }
        )


@dataclass(frozen=True)
class LoadedPosterior:
    """A global posterior with its manifest."""

    prior: GlobalPosterior
    manifest: PosteriorManifest


def check_posterior_id(id: str) -> None:
    """Raise `ValueError` for an id that is not fit to name a folder."""
    if not _ID.fullmatch(id):
        raise ValueError(f"a posterior id has lower-case letters, digits, dots and dashes, not {id!r}")


def save_posterior(folder: Path, prior: GlobalPosterior, manifest: PosteriorManifest) -> None:
    """Write the artifact to `folder`, complete or not at all, replacing what is there.

    Raises `ValueError` where `manifest` is of another posterior, and `StorageFullError`.
    """
    if manifest.digest != posterior_digest(prior):
        raise ValueError("the manifest is of another posterior")
    with staged(folder, f"posterior {manifest.id}") as staging:
        write_tensors(staging, prior)
        (staging / _MANIFEST).write_text(json.dumps(manifest.to_json(), indent=1) + "\n", encoding="utf-8")
        (staging / _CARD).write_text(model_card(manifest.to_json()), encoding="utf-8")


def load_posterior(id_or_path: str | Path) -> LoadedPosterior:
    """Load the artifact that ships under this id, or the one in this folder.

    Raises `UnknownArtifactError`, `UnsupportedFormatError`, and `CorruptArtifactError` where the
    manifest cannot be read or the tensors are not those of this posterior.
    """
    folder = posterior_folder(id_or_path)
    try:
        manifest = PosteriorManifest.from_json(finite_json((folder / _MANIFEST).read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptArtifactError(f"the manifest of {folder.name} cannot be read: {error!r}") from error
    prior = read_tensors(folder, GlobalPosterior, manifest.config, manifest.sites)
    if posterior_digest(prior) != manifest.digest:
        raise CorruptArtifactError(f"the tensors of {folder.name} do not match the digest in its manifest")
    return LoadedPosterior(prior, manifest)


def posterior_folder(id_or_path: str | Path) -> Path:
    """Return the folder of the artifact that ships under this id, or this folder.

    Raises `UnknownArtifactError` where there is no manifest.
    """
    folder = _SHIPPED / id_or_path if id_or_path in shipped_posteriors() else Path(id_or_path)
    with refusal_is_an_error(f"posterior {str(id_or_path)!r}"):
        found = (folder / _MANIFEST).is_file()
    if not found:
        shipped = ", ".join(shipped_posteriors()) or "none"
        remedy = (
            f"; one of the hub is fetched by `abmll posterior pull {id_or_path} --out FOLDER`"
            if hub_source(str(id_or_path))
            else ""
        )
        raise UnknownArtifactError(
            f"{str(id_or_path)!r} is no posterior: neither a folder with one nor of {shipped}{remedy}"
        )
    return folder


def shipped_posteriors() -> list[str]:
    """Return the ids of the posteriors in this package: those of `DEFAULT_POSTERIORS` first."""
    defaults = DEFAULT_POSTERIORS.values()
    found = (path.parent.name for path in _SHIPPED.glob(f"*/{_MANIFEST}"))
    return sorted(found, key=lambda id: (id not in defaults, id))
