"""Between forms of the same model: GGUF -> plain bf16 -> quantised on disk -> loaded -> dequantised again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GgufConfig

from model_store.catalogue import Quantisation

_BNB_LINEARS = (bnb.nn.Linear8bitLt, bnb.nn.Linear4bit)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file to `folder` as a plain bf16 safetensors checkpoint.

    The loaded model remembers its GGUF origin and refuses to be saved, so a clean one takes over its weights.
    """
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    with torch.device("meta"):
        clean = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    clean.load_state_dict(loaded.state_dict(), assign=True)
    clean.tie_weights()
    clean.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def quantise(checkpoint: Path, folder: Path, quantisation: Quantisation, device: str) -> None:
    """Write the model of `checkpoint`, quantised by bitsandbytes (never its embeddings and head), and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint,
        dtype=torch.bfloat16,
        device_map={"": device},
        use_safetensors=True,
        quantization_config=_bitsandbytes_config(quantisation),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)


def _bitsandbytes_config(quantisation: Quantisation) -> BitsAndBytesConfig:
    if quantisation == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def load_model(folder: Path, device: str) -> Any:
    """The causal language model in `folder` on `device`, in bf16 where it is not quantised, in evaluation mode, frozen."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, device_map={"": device}, use_safetensors=True, attn_implementation="sdpa"
    )
    return model.eval().requires_grad_(False)


def dequantised_bytes(model: nn.Module) -> int:
    """Bytes of memory that the bf16 weights of all bitsandbytes layers would take."""
    return sum(2 * m.in_features * m.out_features for m in model.modules() if isinstance(m, _BNB_LINEARS))


def dequantise(model: nn.Module) -> None:
    """Replace every bitsandbytes layer, in place, by a plain bf16 one with the same (dequantised) weights.

    Only for a model that has not run yet: on the CPU the first forward of a 4-bit layer repacks its weights.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, _BNB_LINEARS):
            with torch.device("meta"):
                plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            plain.weight = nn.Parameter(dequantised_weight(module).to(torch.bfloat16), requires_grad=False)
            if module.bias is not None:
                plain.bias = module.bias
            model.set_submodule(name, plain.eval())


def dequantised_weight(layer: nn.Module) -> Tensor:
    """The weight [d_out, d_in] that a bitsandbytes layer stands for; see `dequantise` for when."""
    weight = layer.weight
    if isinstance(layer, bnb.nn.Linear8bitLt):
        scales = weight.SCB if layer.state.SCB is None else layer.state.SCB
        return bnb.functional.int8_vectorwise_dequant(weight.data, scales)
    return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
