"""Conversion between forms of a model: GGUF, plain bf16, quantised on disk, loaded, dequantised."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GgufConfig

from abmll.decoder.quantised import dense_weight
from model_store.errors import UnusableBaseError
from model_store.pretrained.catalogue import Quantisation

_BNB_LINEARS = (bnb.nn.Linear8bitLt, bnb.nn.Linear4bit)
_NF4_BLOCK = 64  # weights that share one scale


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file to `folder`, as plain bf16 safetensors.

    The loaded model remembers its GGUF origin and refuses to be saved, so a clean one takes over
    its weights.
    """
    with redirect_stderr(io.StringIO()):  # a progress bar that has no switch
        loaded = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    with torch.device("meta"):
        clean = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    clean.load_state_dict(loaded.state_dict(), assign=True)
    clean.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def compute_dtype(device: str) -> torch.dtype:
    """Return the dtype of activations and dequantised weights.

    It is bf16 where the hardware multiplies it, else fp32. Measured on a CPU without bf16
    instructions (AVX2), with products of this project's shapes: fp32 173 GFLOP/s, bf16 20; an
    adaptation took 9 s in fp32 and 253 s in bf16.
    """
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities = torch.cpu.get_capabilities()
    # The first two are of x86, the last is of ARM.
    native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def quantise(checkpoint: Path, folder: Path, quantisation: Quantisation, device: str) -> None:
    """Write the model of `checkpoint`, quantised by bitsandbytes, and its tokenizer to `folder`.

    Embeddings and the output layer stay as they are. Raises `UnusableBaseError` for a folder that
    is no such checkpoint.
    """
    model = load_model(checkpoint, device, quantization_config=_bitsandbytes_config(quantisation))
    _check_block_shapes(model, checkpoint.name)
    model.save_pretrained(folder)
    load_tokenizer(checkpoint).save_pretrained(folder)


def _check_block_shapes(model: nn.Module, name: str) -> None:
    """Refuse shapes whose 4-bit weights bitsandbytes (0.50) unpacks with wrong scales on the CPU.

    It does so without an error.
    """
    for path, layer in model.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit) and layer.in_features % _NF4_BLOCK:
            reason = f"{path} has {layer.in_features} inputs, no multiple of {_NF4_BLOCK}"
            raise UnusableBaseError(f"{name} cannot be quantised to nf4: {reason}. Use int8")


def _bitsandbytes_config(quantisation: Quantisation) -> BitsAndBytesConfig:
    if quantisation == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def load_model(folder: Path, device: str, **options: Any) -> Any:
    """Load the causal language model in `folder` on `device`, frozen and in evaluation mode.

    Weights that are not quantised are bf16. Raises `UnusableBaseError` where there is no model of
    an architecture known to `transformers`.
    """
    with _unusable_if_refused(folder):
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16,
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
            **options,
        )
    return model.eval().requires_grad_(False)


def load_skeleton(folder: Path) -> Any:
    """Load the modules of the model in `folder` without weights, on torch's device `meta`.

    Quantised layers become plain ones. Raises `UnusableBaseError` as `load_model`.
    """
    with _unusable_if_refused(folder), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in `folder`. Raises `UnusableBaseError` where there is none."""
    with _unusable_if_refused(folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


@contextmanager
def _unusable_if_refused(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        # An error number means that the machine failed, not the checkpoint.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UnusableBaseError(f"{folder.name} cannot be loaded: {error}") from error


def cast_dense(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every weight and bias that is not quantised this dtype, in place.

    `transformers` loads a quantised checkpoint in the dtype that it was saved with, whatever is
    asked for.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias" or not isinstance(module, _BNB_LINEARS):
                parameter.data = parameter.data.to(dtype)


def dequantised_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Return the bytes that the weights of all bitsandbytes layers would take in `dtype`."""
    weights: int = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, _BNB_LINEARS))
    return weights * dtype.itemsize


def dequantise(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Replace every bitsandbytes layer, in place, by a plain one of `dtype` with the same weights.

    Only for a model that has not run yet: on the CPU the first forward pass of a 4-bit layer
    repacks its weights.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, _BNB_LINEARS):
            with torch.device("meta"):
                plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            weight = dense_weight(module).to(dtype)
            plain.weight = nn.Parameter(weight, requires_grad=False)
            if module.bias is not None:
                plain.bias = module.bias
            model.set_submodule(name, plain.eval())
