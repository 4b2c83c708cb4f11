"""Tiny tokenizers of four families, each with a twin whose control tokens no text contains."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import transformers
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

# In the order of their ids, from 0. Only the unknown token stands for text.
CONTROL = ("<unk>", "<s>", "</s>", "<filename>", "[CLS]", "[SEP]", "<|im_end|>")
UNKNOWN, BEGINNING, END = range(3)
# The names of the twin's control tokens, in characters that the texts of tests do not contain.
NOWHERE = tuple(f"\U0010fff0{i}\U0010fff1" for i in range(len(CONTROL)))
BYTES = tuple(f"<0x{i:02X}>" for i in range(256))
CORPUS = (
    "the film was wonderful and the actors were great, truly great",
    "a dull story, badly told; I want my money back\nAnswer: billing shipping refund",
    "Answer: positive negative neutral not related\n\nAnswer: < filename>a.pdf [ CLS] text [ SEP] < /s> < s>",
    "What is the capital of France?  Paris.   0123456789 don't DON'T I'm <| im_end|> < unk> <0 x41>",
) * 3


class Family(NamedTuple):
    """A tokenizer, and its twin: the same but for the names of its control tokens."""

    tokenizer: Any
    twin: Tokenizer
    keeps_text: bool  # it can decode every character


def byte_level_bpe() -> Tokenizer:
    """As GPT-2 and SmolLM."""
    return _byte_level(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False))


def byte_level_bpe_with_a_prefix_space() -> Tokenizer:
    """With a space put in front of a text, and the whole text looked up before merges are tried."""
    words = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    return _byte_level(models.BPE(ignore_merges=True), words)


def unigram() -> Tokenizer:
    """As SentencePiece's Unigram, its normalizer written with Prepend and Replace."""
    trainer = trainers.UnigramTrainer(
        vocab_size=420, special_tokens=[*NOWHERE, *BYTES], unk_token=NOWHERE[0], show_progress=False
    )
    return _sentence_piece(models.Unigram(), trainer, _PREPENDED, None)


def unigram_with_metaspace() -> Tokenizer:
    """As T5: NFKC, space stripped, and words with their space in front."""
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=list(NOWHERE), unk_token=NOWHERE[0], show_progress=False
    )
    cleaned = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    return _sentence_piece(models.Unigram(), trainer, cleaned, pre_tokenizers.Metaspace())


def sentence_piece_bpe() -> Tokenizer:
    """As Llama 2: no words, and bytes for characters without a token."""
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=[*NOWHERE, *BYTES], show_progress=False)
    return _sentence_piece(models.BPE(unk_token=NOWHERE[0], fuse_unk=True), trainer, _PREPENDED, None)


def sentence_piece_bpe_with_metaspace() -> Tokenizer:
    """As Mistral: a space is put in front of the first word only."""
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=[*NOWHERE, *BYTES], show_progress=False)
    words = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _sentence_piece(models.BPE(unk_token=NOWHERE[0]), trainer, None, words)


def word_piece() -> Tokenizer:
    """As BERT, which puts control tokens around every text."""
    tokenizer = _word_piece(pre_tokenizers.BertPreTokenizer())
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.post_processor = processors.BertProcessing((NOWHERE[5], 5), (NOWHERE[4], 4))
    return tokenizer


def word_piece_between_spaces() -> Tokenizer:
    """With words up to the next space, so that a word can read like a control token."""
    return _word_piece(pre_tokenizers.WhitespaceSplit())


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    make.__name__: make
    for make in (
        byte_level_bpe, byte_level_bpe_with_a_prefix_space, unigram, unigram_with_metaspace, sentence_piece_bpe,
        sentence_piece_bpe_with_metaspace, word_piece, word_piece_between_spaces,
    )
}  # fmt: skip


@cache
def family(name: str) -> Family:
    """Return a family by its name in `FAMILIES`."""
    twin = FAMILIES[name]()
    written = twin.to_str()
    for nowhere, control in zip(NOWHERE, CONTROL, strict=True):
        written = written.replace(nowhere, control)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(written),
        eos_token=CONTROL[END],
        unk_token=CONTROL[UNKNOWN],
    )
    model = json.loads(written)["model"]
    keeps = name.startswith("byte_level") or bool(model.get("byte_fallback"))
    return Family(tokenizer, twin, keeps)


_PREPENDED = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])


def _byte_level(model: Any, words: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = words, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(NOWHERE),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _sentence_piece(model: Any, trainer: Any, normalizer: Any, words: Any) -> Tokenizer:
    """Train on words, and then take text as `normalizer` and `words` do."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(CORPUS, trainer)
    written = json.loads(tokenizer.to_str())
    written["model"]["byte_fallback"] = BYTES[0] in str(written["model"]["vocab"])
    written["added_tokens"] = [t for t in written["added_tokens"] if t["content"] in NOWHERE]
    if written["model"]["type"] == "Unigram":  # bytes are the last resort
        written["model"]["vocab"] = [[p, -30.0 if p in BYTES else s] for p, s in written["model"]["vocab"]]
    tokenizer = Tokenizer.from_str(json.dumps(written))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return tokenizer


def _word_piece(words: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token=NOWHERE[0]))
    tokenizer.pre_tokenizer, tokenizer.decoder = words, decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=list(NOWHERE), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer
