"""Posteriors as safetensors files, and the digest that names their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from abmll.decoder.layout import Site
from abmll.errors import PosteriorMismatchError
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.posteriors import GlobalPosterior, Posterior
from model_store.errors import CorruptArtifactError, NonFiniteError

TENSORS_FILE = "posterior.safetensors"

AnyPosterior = TypeVar("AnyPosterior", bound=Posterior)


def posterior_digest(posterior: Posterior) -> str:
    """Return the hexadecimal SHA-256 of the content of a posterior.

    This is its configuration, its sites, its values in fp32, and its whitening.
    """
    sha = hashlib.sha256(canonical_json([posterior.config.to_json(), sites_to_json(posterior.sites)]))
    whitening = posterior.whitening if isinstance(posterior, GlobalPosterior) else None
    for tensor in (posterior.values, *((whitening.mean, whitening.map) if whitening else ())):
        sha.update(tensor.detach().cpu().float().contiguous().numpy().astype("<f4").data)
    return sha.hexdigest()


def canonical_json(value: Any, *, allow_nan: bool = True) -> bytes:
    """Return JSON to digest; equal values give equal bytes.

    Raises `ValueError` for NaN and infinities unless `allow_nan`.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=allow_nan)
    return text.encode()


def sites_to_json(sites: Sequence[Site]) -> list[dict[str, Any]]:
    """Return plain values for a manifest."""
    return [asdict(site) for site in sites]


def sites_from_json(values: Sequence[Mapping[str, Any]]) -> tuple[Site, ...]:
    """Invert `sites_to_json`."""
    return tuple(Site(**value) for value in values)


def write_tensors(folder: Path, posterior: Posterior) -> None:
    """Write `posterior.to_tensors()` into `folder`."""
    tensors = {name: tensor.cpu() for name, tensor in posterior.to_tensors().items()}
    save_file(tensors, folder / TENSORS_FILE)


def read_tensors(
    folder: Path, kind: type[AnyPosterior], config: PosteriorConfig, sites: Sequence[Site]
) -> AnyPosterior:
    """Read the posterior in `folder`.

    Raises `CorruptArtifactError` unless its tensors exist and fit `sites`.
    """
    try:
        tensors = load((folder / TENSORS_FILE).read_bytes())
        check_finite(tensors)
        return kind.from_tensors(config, sites, tensors)
    except (FileNotFoundError, SafetensorError, PosteriorMismatchError, NonFiniteError) as error:
        raise CorruptArtifactError(f"the tensors of {folder.name} cannot be read: {error}") from error


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise `NonFiniteError` naming the first tensor with a value that is no finite number."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"tensor {name} has values that are no finite numbers")
