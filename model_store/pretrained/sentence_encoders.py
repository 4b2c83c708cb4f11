"""Loading a sentence encoder by name, fetched the first time; for posteriors made with one."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from abmll.similarity.sentence_encoder import SentenceEncoder, packs
from model_store.errors import FetchError, UnusableBaseError
from model_store.pretrained.bases import cache_folder, default_cache_dir, quiet_transformers
from model_store.pretrained.catalogue import resolve_sentence_encoder
from model_store.pretrained.convert import compute_dtype
from model_store.pretrained.sources import cached_checkpoint, fetch_checkpoint, source_revision
from model_store.progress import no_report, progress_bar

_LAYOUT = "encoders-v1"


def load_sentence_encoder(
    name: str | None,
    *,
    device: str = "cpu",
    cache_dir: Path | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> SentenceEncoder | None:
    """Load the encoder that `name` means (see `resolve_sentence_encoder`); None for None.

    It computes in `dtype`, by default what suits the device (`compute_dtype`), where texts are
    packed for it (`packs`), and otherwise in fp32.

    Raises `UnknownBaseError`, `UnusableBaseError`, `FetchError` (`ChecksumError`) and
    `StorageFullError`.
    """
    if name is None:
        return None
    folder = fetch_sentence_encoder(name, cache_dir=cache_dir, progress=progress)
    with quiet_transformers():
        try:
            model = AutoModel.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UnusableBaseError(f"no sentence encoder could be loaded from {name!r}: {error}") from error
    max_tokens = _trained_length(folder) or int(model.config.max_position_embeddings)
    model = model.to(device).eval().requires_grad_(False)
    if packs(model):
        model = model.to(dtype or compute_dtype(device))
    return SentenceEncoder(model, tokenizer, max_tokens)


def fetch_sentence_encoder(name: str, *, cache_dir: Path | None = None, progress: bool = True) -> Path:
    """Return the folder of an encoder, fetched where it is not there. Raises as
    `load_sentence_encoder`.
    """
    source = resolve_sentence_encoder(name)
    with progress_bar() if progress else nullcontext(no_report) as report:
        revision = source_revision(source)
        return fetch_checkpoint(source, revision, _cache(name, revision, cache_dir), report)


def cached_sentence_encoder(name: str, *, cache_dir: Path | None = None) -> Path | None:
    """Return the folder of an encoder that is there; None where loading it would fetch it.

    Raises `UnknownBaseError`.
    """
    source = resolve_sentence_encoder(name)
    try:
        revision = source_revision(source)
    except FetchError:
        return None
    return cached_checkpoint(source, revision, _cache(name, revision, cache_dir))


def _cache(name: str, revision: str, cache_dir: Path | None) -> Path:
    return cache_folder((cache_dir or default_cache_dir()) / _LAYOUT, Path(name).name, revision)


def _trained_length(folder: Path) -> int | None:
    """Return the length in tokens of the texts that the encoder was trained on.

    It is read from sentence-transformers' file; None where there is no such file.
    """
    path = folder / "sentence_bert_config.json"
    return json.loads(path.read_text(encoding="utf-8")).get("max_seq_length") if path.is_file() else None
