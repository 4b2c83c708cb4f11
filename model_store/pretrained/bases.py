"""Loading a base model by name: fetched and quantised the first time, from the cache afterwards."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch
from transformers.utils import logging as transformers_logging

from model_store.devices import check_device, model_has_to_fit
from model_store.errors import FetchError
from model_store.pretrained.catalogue import BaseModel, Dtype, Quantisation, resolve_base
from model_store.pretrained.convert import (
    cast_dense,
    compute_dtype,
    dequantise,
    dequantised_bytes,
    load_model,
    load_skeleton,
    load_tokenizer,
    quantise,
)
from model_store.pretrained.identity import BaseIdentity
from model_store.pretrained.sources import cached_checkpoint, fetch_checkpoint, source_revision
from model_store.process_memory import available_bytes
from model_store.progress import Report, no_report, progress_bar
from model_store.storage import cached_folder, is_intact, require_free_space

_LAYOUT = "bases-v1"  # changed when an older cache must not be read any more


@dataclass(frozen=True)
class LoadedBase:
    """A frozen `transformers` causal language model, its tokenizer, and its identity.

    The model is in evaluation mode.
    """

    model: Any
    tokenizer: Any
    identity: BaseIdentity


def load_base(
    name: str,
    *,
    quantisation: Quantisation | None = None,
    device: str = "cpu",
    cache_dir: Path | None = None,
    keep_dequantised: bool | None = None,
    dtype: Dtype | None = None,
    progress: bool = True,
) -> LoadedBase:
    """Load the base model that `name` means (see `resolve_base`).

    `quantisation` replaces the base's default. `cache_dir` is `ABMLL_CACHE_DIR` or the user's cache
    folder where not given. `keep_dequantised` replaces the quantised layers in memory by plain ones
    with the same weights, which run faster on the CPU. By default this is done on the CPU when
    memory allows. `dtype` is that of activations and dense weights, by default what suits the
    device (`compute_dtype`). Several processes may load at once.

    Raises `UnknownBaseError`, `UnusableBaseError`, `UnusableDeviceError`, `FetchError`
    (`ChecksumError`), `StorageFullError` and `UnusableFolderError`.
    """
    with _ready(name, quantisation, device, cache_dir, progress) as (folder, identity, report):
        report(f"Loading {identity.id}", 0, 0)
        model = load_model(folder, device)
        computed: torch.dtype = getattr(torch, dtype) if dtype else compute_dtype(device)
        if _should_dequantise(model, device, computed, keep_dequantised):
            dequantise(model, computed)
        cast_dense(model, computed)
        return LoadedBase(model, load_tokenizer(folder), identity)


@dataclass(frozen=True)
class BaseSkeleton:
    """The modules of a base model, their names and sizes, without weights; and its identity."""

    model: Any
    identity: BaseIdentity


def load_base_skeleton(
    name: str,
    *,
    quantisation: Quantisation | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> BaseSkeleton:
    """Load a base as `load_base`, without reading its weights.

    This takes seconds and little memory for a base of any size that is cached.
    """
    base = resolve_base(name)
    with progress_bar() if progress else nullcontext(no_report) as report, quiet_transformers():
        identity = BaseIdentity(base.name, source_revision(base.source), quantisation or base.quantisation)
        folder = _model_folder(base, identity, cache_dir or default_cache_dir(), "cpu", report)
        return BaseSkeleton(load_skeleton(folder), identity)


def fetch_base(
    name: str,
    *,
    quantisation: Quantisation | None = None,
    device: str = "cpu",
    cache_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Return the folder of a base as `load_base` reads it, fetched and quantised where it is not
    there.

    Raises as `load_base`.
    """
    with _ready(name, quantisation, device, cache_dir, progress) as (folder, _, _):
        return folder


@contextmanager
def _ready(
    name: str, quantisation: Quantisation | None, device: str, cache_dir: Path | None, progress: bool
) -> Iterator[tuple[Path, BaseIdentity, Report]]:
    """Yield the folder of a base, fetched and quantised, its identity, and where to report."""
    check_device(device)
    base = resolve_base(name)
    with (
        progress_bar() if progress else nullcontext(no_report) as report,
        quiet_transformers(),
        model_has_to_fit(device),
    ):
        identity = BaseIdentity(base.name, source_revision(base.source), quantisation or base.quantisation)
        yield (
            _model_folder(base, identity, cache_dir or default_cache_dir(), device, report),
            identity,
            report,
        )


def cached_base(
    name: str, *, quantisation: Quantisation | None = None, cache_dir: Path | None = None
) -> Path | None:
    """Return the folder of a base that is there, intact; None where loading it would fetch or
    quantise.

    Raises `UnknownBaseError`.
    """
    base = resolve_base(name)
    try:
        revision = source_revision(base.source)
    except FetchError:
        return None
    cache = cache_folder((cache_dir or default_cache_dir()) / _LAYOUT, base.name, revision)
    quantisation = quantisation or base.quantisation
    if quantisation == "none":
        return cached_checkpoint(base.source, revision, cache)
    return cache / quantisation if is_intact(cache / quantisation) else None


def default_cache_dir() -> Path:
    """Return `ABMLL_CACHE_DIR`, or `abmll` in the user's cache folder."""
    return Path(os.environ.get("ABMLL_CACHE_DIR") or platformdirs.user_cache_dir("abmll"))


def cache_folder(parent: Path, name: str, revision: str) -> Path:
    """Return the folder in which one revision of a model is cached."""
    slug = re.sub(r"[^A-Za-z0-9.-]+", "--", name)
    return parent / f"{slug}-{revision.removeprefix('sha256:')[:16]}"


def _model_folder(
    base: BaseModel, identity: BaseIdentity, cache_dir: Path, device: str, report: Report
) -> Path:
    cache = cache_folder(cache_dir / _LAYOUT, base.name, identity.revision)
    if identity.quantisation == "none":
        return fetch_checkpoint(base.source, identity.revision, cache, report)

    def build(folder: Path) -> None:
        checkpoint = fetch_checkpoint(base.source, identity.revision, cache, report)
        weights_bytes = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
        # int8 halves the linear layers and leaves the embeddings. For the embedded default, 0.61 of
        # the bytes remain.
        require_free_space(folder.parent, weights_bytes * 3 // 4, base.name)
        report(f"Quantising {base.name} to {identity.quantisation}", 0, 0)
        quantise(checkpoint, folder, identity.quantisation, device)

    return cached_folder(cache / identity.quantisation, build, base.name, report)


def _should_dequantise(model: Any, device: str, dtype: torch.dtype, keep_dequantised: bool | None) -> bool:
    if keep_dequantised is not None:
        return keep_dequantised
    # Half of the free memory is left to activations, adapters and the rest of the machine.
    return device == "cpu" and dequantised_bytes(model, dtype) < available_bytes() // 2


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the progress bars and notes of `transformers` from mixing with ours."""
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
