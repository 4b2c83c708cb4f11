import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_store.pretrained.convert import convert_gguf
from tests.tiny import CORPUS, VOCABULARY, tiny_model, tiny_tokenizer


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of a query or key projection in the order of rotary pairs in GGUF."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: Any, tokenizer: Any) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)

    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].get)
    tokens += [f"<|unused {number}|>" for number in range(len(tokens), VOCABULARY)]
    kinds = [gguf.TokenType.CONTROL if token.startswith("<|") else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_eos_token_id(0)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # it is tied to the embeddings
            continue
        module = name.split(".")[-2]
        weight = interleaved(tensor.numpy(), heads[module]) if module in heads else tensor.numpy()
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, tiny_model("llama"), tiny_tokenizer())
    convert_gguf(path, folder)
    return folder


def test_weights_of_a_gguf_are_kept(converted):
    expected = {name: tensor.bfloat16() for name, tensor in tiny_model("llama").state_dict().items()}
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.bfloat16)
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(converted / "model.safetensors")
    assert "quantization_config" not in json.loads((converted / "config.json").read_text())


def test_the_tokenizer_of_a_gguf_is_kept(converted):
    tokenizer, original = AutoTokenizer.from_pretrained(converted), tiny_tokenizer()
    for text in [*CORPUS, " \n\té 日本語 🙂<|end|>"]:
        assert tokenizer(text).input_ids == original(text).input_ids
    assert tokenizer.eos_token_id == 0
