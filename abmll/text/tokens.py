"""Texts as token ids: one rule for inputs, options, labels and answers, for every tokenizer.

Each character of a text is text. What reads like a control token (`<|im_end|>`, `</s>`, `[SEP]`) is
tokenised as its characters. A text behind another gets the tokens that it has in the joint text: no
mark of a text's beginning comes between the two.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import takewhile
from secrets import token_hex
from typing import Any

from tokenizers import Tokenizer

from abmll.errors import UnsupportedModelError

_Part = dict[str, Any]  # of a tokenizer's JSON


class TextTokens:
    """Texts to token ids and back, by the `tokenizers` tokenizer inside a `transformers` one.

    Two texts are joined by joining their ids. These are the ids of the joint text, unless a word or
    a token of it would span the two: that is cut between them. With space on one side of the cut,
    as templates have it, no tokenizer that is known here spans it. It has no state after
    construction, so threads may share it. Raises `UnsupportedModelError` for a tokenizer that is
    not from the library `tokenizers`.
    """

    def __init__(self, tokenizer: Any) -> None:
        own: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        if own is None:
            raise UnsupportedModelError(
                f"the model's tokenizer is a {type(tokenizer).__name__}: one with a file tokenizer.json is needed"
            )
        self._own = own
        self.end_of_text: int = tokenizer.eos_token_id
        probe = self._own.encode("a")
        marked = zip(probe.ids, probe.special_tokens_mask, strict=True)
        self._in_front = tuple(i for i, _ in takewhile(lambda pair: pair[1], marked))
        first = _text_only(json.loads(self._own.to_str()))
        behind = {**first, **{kind: _adding_nothing(first[kind]) for kind in _IN_FRONT}}
        self._first = Tokenizer.from_str(json.dumps(first))
        self._behind = self._first if behind == first else Tokenizer.from_str(json.dumps(behind))

    def first(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text with nothing before it, behind the model's mark of a beginning."""
        return self._in_front + tuple(self._first.encode(text, add_special_tokens=False).ids)

    def behind(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text with another text before it."""
        return tuple(self._behind.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: tuple[int, ...]) -> str:
        """Return the text of generated ids, without the end-of-text token and space around it.

        A control token in the middle is shown by its name.
        """
        written = ids[:-1] if ids and ids[-1] == self.end_of_text else ids
        return str(self._own.decode(list(written), skip_special_tokens=False)).strip()


# The parts of a tokenizer that may put something in front of a text or take something away there.
_IN_FRONT = ("normalizer", "pre_tokenizer")
# What the bytes of characters without a token are called. A Unigram model would take these names in
# a text for the bytes, so they are cut behind the first character.
_CUT_BYTE_NAMES: _Part = {
    "type": "Split",
    "pattern": {"Regex": "<(?=0x[0-9A-F]{2}>)"},
    "behavior": "Isolated",
    "invert": False,
}


def _text_only(tokenizer: _Part) -> _Part:
    """Return a tokenizer without marks around a text, whose control tokens no text can contain.

    A control token keeps its id and gets a name that cannot be guessed: `Unigram` and `WordPiece`
    models look up all names in a text, also those of control tokens. One of a single character is
    left alone: that character has no other token. Space at the end of a text stays.
    """
    control = {token["content"] for token in tokenizer["added_tokens"] if token["special"]}
    hidden = {name: f"{name}{token_hex(16)}" for name in control if len(name) > 1}
    added = [{**t, "content": hidden.get(t["content"], t["content"])} for t in tokenizer["added_tokens"]]
    changed = {
        "added_tokens": added,
        "model": _renamed(tokenizer["model"], hidden),
        "normalizer": _changed(
            tokenizer["normalizer"], lambda part: part | _only({"strip_right": False}, part)
        ),
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
    if tokenizer["model"]["type"] == "Unigram" and tokenizer["model"].get("byte_fallback"):
        parts = [part for part in (tokenizer["pre_tokenizer"], _CUT_BYTE_NAMES) if part]
        changed["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    return {**tokenizer, **changed}


def _renamed(model: _Part, names: Mapping[str, str]) -> _Part:
    """Return a tokenizer's model with other names of some tokens, which no merge then makes."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: names with scores, by id
        return {**model, "vocab": [[names.get(name, name), score] for name, score in vocabulary]}
    changed = {**model, "vocab": {names.get(name, name): i for name, i in vocabulary.items()}}
    if "unk_token" in model:
        changed["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        within = len(model.get("continuing_subword_prefix") or "")
        changed["merges"] = [[a, b] for a, b in model["merges"] if not {a, b, a + b[within:]} & names.keys()]
    return changed


def _adding_nothing(part: _Part | None) -> _Part | None:
    """Return a normalizer or pre-tokenizer that treats a text as one with other text before it."""

    def behind(part: _Part) -> _Part:
        if part["type"] == "Prepend":
            return {"type": "Sequence", "normalizers": []}
        unmarked = {"prepend_scheme": "never", "add_prefix_space": False, "strip_left": False}
        return part | _only(unmarked, part)

    return _changed(part, behind)


def _changed(part: _Part | None, change: Callable[[_Part], _Part]) -> _Part | None:
    """Return a part of a tokenizer after `change` of it, or of each part that it consists of."""
    if part is None or part["type"] != "Sequence":
        return part and change(part)
    return {
        name: [_changed(inner, change) for inner in value] if isinstance(value, list) else value
        for name, value in part.items()
    }


def _only(values: _Part, part: _Part) -> _Part:
    """Return those of `values` that replace values of `part`."""
    return {name: value for name, value in values.items() if name in part}
