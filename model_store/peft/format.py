"""LoRA adapters as the `peft` library writes and reads them: a folder of two files.

    adapter_model.safetensors   `base_model.model.<path of the module>.lora_A.weight` and `lora_B`
    adapter_config.json         the rank, alpha, and which modules of which layers

The library itself is not needed. What is written here, every version of it reads. Any plain LoRA on
linear layers can be read here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from abmll.posterior.plain_lora import PlainLora
from model_store.errors import CorruptArtifactError, UnknownArtifactError, UnsupportedPeftError
from model_store.pretrained.catalogue import CATALOGUE, HubSource
from model_store.pretrained.identity import BaseIdentity
from model_store.storage import file_sha256, finite_json

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"

_LAYER = re.compile(r"\.(\d+)\.")
_TENSOR = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<part>[AB])\.weight")
# Fields that may have any value. What they say is in the tensors, is taken account of here, or
# matters to training only.
_HARMLESS = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "init_lora_weights", "eva_config",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "qalora_group_size", "megatron_core",
}  # fmt: skip
# Other ways of initialising (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA) change the weights of the base.
_INITIALISED_BESIDE_THE_BASE = (True, False, "gaussian", "orthogonal", "eva", "mica")


@dataclass(frozen=True)
class PeftAdapter:
    """A LoRA by the paths of the modules that it is added to.

    `base` is the name of the base that it was made on, as it says itself. `digest` is the SHA-256
    of its tensors.
    """

    loras: Mapping[str, PlainLora]
    base: str | None
    digest: str


@dataclass(frozen=True)
class _LoraConfig:
    peft_type: str
    r: int
    lora_alpha: float
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    init_lora_weights: bool | str | None = True
    bias: str = "none"
    base_model_name_or_path: str | None = None


def write_peft(folder: Path, loras: Mapping[str, PlainLora], base: BaseIdentity, card: str) -> None:
    """Write `loras`, by the path of their module, and the model card into `folder`, which exists.

    Raises `ValueError` where they differ in rank or alpha.
    """
    ((rank, alpha),) = {(lora.rank, lora.alpha) for lora in loras.values()}
    config: dict[str, Any] = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": public_name(base),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": sorted({int(_LAYER.findall(path)[0]) for path in loras}),
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "revision": None if base.revision.startswith("sha256:") else base.revision,
        "target_modules": sorted({path.rpartition(".")[2] for path in loras}),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    tensors = {
        f"base_model.model.{path}.lora_{part}.weight": tensor.detach().cpu().float().contiguous()
        for path, lora in loras.items()
        for part, tensor in (("A", lora.a), ("B", lora.b))
    }
    save_file(tensors, folder / TENSORS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def public_name(base: BaseIdentity) -> str:
    """Return the base's repository on the model hub, where it has one; else its id."""
    source = CATALOGUE[base.id].source if base.id in CATALOGUE else None
    return source.repository if isinstance(source, HubSource) else base.id


def read_peft(folder: Path) -> PeftAdapter:
    """Read the LoRA in `folder`, its factors in fp32.

    Raises `UnknownArtifactError` without the two files, `CorruptArtifactError` where they cannot be
    read or contradict each other, and `UnsupportedPeftError` for anything beyond a LoRA on frozen
    linear layers.
    """
    for name in (CONFIG_FILE, TENSORS_FILE):
        if not (folder / name).is_file():
            raise UnknownArtifactError(f"{folder.name} has no {name}: only adapters in safetensors are read")
    config = _read_config(folder)
    try:
        tensors = load((folder / TENSORS_FILE).read_bytes())
    except SafetensorError as error:
        raise CorruptArtifactError(f"the tensors of {folder.name} cannot be read: {error}") from error
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise UnsupportedPeftError(f"{folder.name} has the tensor {name}, which is no part of a LoRA")
        parts.setdefault(match["path"], {})[match["part"]] = _checked(name, tensor)
    if not parts:
        raise UnsupportedPeftError(f"{folder.name} has no tensors")
    loras = {path: _lora(path, found, config) for path, found in parts.items()}
    return PeftAdapter(loras, config.base_model_name_or_path, file_sha256(folder / TENSORS_FILE))


def _read_config(folder: Path) -> _LoraConfig:
    try:
        values = finite_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        # Some trainers write every field, with null for one that has no value.
        given = (
            {name: v for name, v in values.items() if v is not None} if isinstance(values, dict) else values
        )
        config = TypeAdapter(_LoraConfig).validate_python(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CorruptArtifactError(f"{CONFIG_FILE} of {folder.name}: {place}: {first['msg']}") from error
    except ValueError as error:
        raise CorruptArtifactError(f"{CONFIG_FILE} of {folder.name} cannot be read: {error}") from error
    if config.peft_type != "LORA":
        raise UnsupportedPeftError(f"{folder.name} is a PEFT adapter of type {config.peft_type}, not LORA")
    if config.bias != "none":
        raise UnsupportedPeftError(f"{folder.name} has trained biases: bias is {config.bias!r}")
    if config.init_lora_weights not in _INITIALISED_BESIDE_THE_BASE:
        how = config.init_lora_weights
        raise UnsupportedPeftError(
            f"{folder.name} belongs to changed base weights: init_lora_weights is {how!r}"
        )
    unsupported = sorted(name for name, value in values.items() if value and name not in {*_HARMLESS, "bias"})
    if unsupported:
        raise UnsupportedPeftError(f"{folder.name} is no plain LoRA: {unsupported[0]} is set")
    return config


def _checked(name: str, tensor: Tensor) -> Tensor:
    if tensor.ndim != 2 or not tensor.is_floating_point() or not tensor.isfinite().all():
        raise CorruptArtifactError(f"{name} is not a matrix of finite numbers")
    return tensor.float()


def _lora(path: str, parts: Mapping[str, Tensor], config: _LoraConfig) -> PlainLora:
    """Return one module's LoRA, with the scaling of `peft` folded into alpha."""
    rank = _matching(config.rank_pattern, path, config.r)
    alpha = _matching(config.alpha_pattern, path, config.lora_alpha)
    if set(parts) != {"A", "B"}:
        raise CorruptArtifactError(f"{path} has only one of lora_A and lora_B")
    if not parts["A"].shape[0] == parts["B"].shape[1] == rank > 0:
        shapes = f"A {tuple(parts['A'].shape)} and B {tuple(parts['B'].shape)}"
        raise CorruptArtifactError(f"{path} has {shapes}, which do not have the rank {rank}")
    return PlainLora(parts["A"], parts["B"], alpha * math.sqrt(rank) if config.use_rslora else alpha)


def _matching(pattern: Mapping[str, Any], path: str, default: Any) -> Any:
    """Return the value of the first key that matches the path, else `default`.

    A key is a regular expression. It matches the whole path, or what follows a dot in it.
    """
    try:
        return next((v for key, v in pattern.items() if re.match(rf"(.*\.)?({key})$", path)), default)
    except re.error as error:
        raise CorruptArtifactError(f"a pattern of {CONFIG_FILE} is no regular expression: {error}") from error
