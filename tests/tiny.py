"""Tiny random models of several architectures and a tokenizer, on which tests take milliseconds."""

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from abmll.decoder.layout import MODULES, AdapterLayout
from abmll.posterior.config import NoiseConfig, PosteriorConfig, TemperatureRule
from abmll.similarity.gaussian_process import SimilarityConfig

CORPUS = [
    "the film was wonderful and the actors were great",
    "a dull story, badly told; I want my money back",
    "Answer: positive negative neutral not related related\n",
    "What is the capital of France? Paris. 0123456789",
]
HIDDEN, HEADS, LAYERS, VOCABULARY = 32, 4, 4, 320
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": 48, "max_position_embeddings": 256, "initializer_range": 0.2, "eos_token_id": 0,
    "bos_token_id": None, "pad_token_id": None,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**_COMMON, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2": lambda: transformers.Qwen2Config(**_COMMON, num_key_value_heads=2),
    "mistral": lambda: transformers.MistralConfig(**_COMMON, num_key_value_heads=2, sliding_window=None),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_COMMON),
    "phi": lambda: transformers.PhiConfig(**_COMMON),
}


def make_config(
    *,
    rank: int = 8,
    alpha: float = 16.0,
    modules: tuple[str, ...] = MODULES,
    first_layer: int = 0,
    noise_rank: int = 4,
    temperature: TemperatureRule | None = None,
    similarity: SimilarityConfig | None = None,
    **noise: Any,
) -> PosteriorConfig:
    """Return the config of a posterior. `noise` are further fields of `NoiseConfig`."""
    return PosteriorConfig(
        AdapterLayout(rank, alpha, modules, first_layer),
        NoiseConfig(rank=noise_rank, **noise),
        temperature or TemperatureRule(),
        similarity,
    )


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of at most `VOCABULARY` tokens; token 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def tiny_model(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    """Return a random model, the same in every call."""
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[architecture](), dtype=dtype).eval()


def tiny_sentence_encoder() -> tuple[Any, Any]:
    """Return a random encoder of texts and its tokenizer, the same in every call."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=HEADS,
        intermediate_size=48, max_position_embeddings=48, initializer_range=0.5,
    )  # fmt: skip
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return transformers.BertModel(config).eval(), tokenizer
