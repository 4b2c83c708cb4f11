"""Equivalence by entailment: its logic on a fake, the rest on a tiny random classifier."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from abmll.errors import UnsupportedModelError
from abmll.prediction.entailment import EntailmentMatch
from abmll.prediction.semantic import Equivalence, cluster
from model_store.errors import UnusableBaseError
from model_store.pretrained.entailment import load_entailment
from tests.tiny import VOCABULARY, tiny_tokenizer

LABELS = {0: "contradiction", 1: "neutral", 2: "ENTAILMENT"}
Pair = tuple[str, str]


class FakeNli:
    """A model and tokenizer in one that entails the pairs `entailed`. Its tokens are the pairs."""

    model_max_length = 64
    truncation_side = "left"
    device = "cpu"

    def __init__(self, entailed: set[Pair]) -> None:
        self.entailed, self.seen = entailed, list[Pair]()
        self.config = SimpleNamespace(id2label=LABELS, max_position_embeddings=64)

    def __call__(self, *texts: list[str], pairs: list[Pair] | None = None, **how: Any) -> Any:
        if pairs is None:
            return SimpleNamespace(to=lambda _: {"pairs": list(zip(*texts, strict=True))})
        self.seen += pairs
        logits = [[0.0, 0.5, 1.0] if pair in self.entailed else [0.0, 1.0, 0.5] for pair in pairs]
        return SimpleNamespace(logits=torch.tensor(logits))


def both(a: str, b: str) -> set[Pair]:
    return {(f"q {a}", f"q {b}"), (f"q {b}", f"q {a}")}


def test_answers_are_the_same_when_each_entails_the_other_behind_the_question() -> None:
    fake = FakeNli(both("Paris", "It is Paris") | {("q Paris, Texas", "q Paris")})
    match: Equivalence = EntailmentMatch(fake, fake)
    assert match.same("q", "Paris", "It is Paris")
    assert match.same("q", "It is Paris", "Paris")
    assert not match.same("q", "Paris, Texas", "Paris")  # one way only
    assert not match.same("other", "Paris", "It is Paris")
    assert cluster("q", ["Paris", "Paris, Texas", "It is Paris"], match) == [[0, 2], [1]]


def test_what_normalises_alike_needs_no_judge() -> None:
    fake = FakeNli(set())
    assert EntailmentMatch(fake, fake).same("q", "Paris.", "the paris")
    assert not fake.seen


@pytest.mark.parametrize("labels", [{0: "LABEL_0", 1: "LABEL_1"}, {0: "entailment_no", 1: "not_entailment"}])
def test_a_classifier_of_something_else_is_refused(labels: dict[int, str]) -> None:
    fake = FakeNli(set())
    fake.config.id2label = labels
    with pytest.raises(UnsupportedModelError, match="no class `entailment`"):
        EntailmentMatch(fake, fake)


def test_a_tokenizer_that_would_cut_answers_is_refused() -> None:
    fake = FakeNli(set())
    fake.truncation_side = "right"
    with pytest.raises(ValueError, match="left"):
        EntailmentMatch(fake, fake)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nli")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=48, id2label=LABELS, initializer_range=0.5,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    return folder


def test_a_classifier_from_a_folder_judges_as_its_logits_say(folder: Path) -> None:
    match = load_entailment(str(folder))
    model = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = tiny_tokenizer()
    answers = ["great", "dull", "Paris", "France 0", "money back", "the capital"]
    verdicts = []
    for a in answers:
        for b in answers:
            if a == b:
                continue
            found = []
            for one, other in ((f"q {a}", f"q {b}"), (f"q {b}", f"q {a}")):
                with torch.no_grad():
                    logits = model(**tokenizer(one, other, return_tensors="pt")).logits
                found.append(int(logits.argmax()) == 2)
            assert match.same("q", a, b) == all(found)
            verdicts.append(all(found))
    assert {True, False} == set(verdicts)


def test_a_long_question_is_cut_and_the_answers_are_not(folder: Path) -> None:
    """Beyond the context, the beginning of the question does not matter; the answers still do."""
    match = load_entailment(str(folder))
    seen = []
    model = match._model
    forward = model.forward

    def spy(**inputs: Any) -> Any:
        seen.append(inputs["input_ids"])
        return forward(**inputs)

    model.forward = spy
    long = "What is the capital of France? " * 30
    match.same(long, "great", "Paris")
    match.same("0123456789" * 30 + long, "great", "Paris")
    assert seen[0].shape == (2, 48)
    assert torch.equal(seen[0], seen[1])
    texts = [match._tokenizer.decode(row) for row in seen[0]]
    assert all("great" in text and "Paris" in text for text in texts)


def test_an_answer_that_reads_like_a_control_token_is_text(folder: Path) -> None:
    match = load_entailment(str(folder))
    seen = []
    forward = match._model.forward

    def spy(**inputs: Any) -> Any:
        seen.append(inputs["input_ids"])
        return forward(**inputs)

    match._model.forward = spy
    match.same("q", "<|end|>", "<|end|>x")
    (ids,) = seen
    assert [match._tokenizer.decode(row[row != 0]) for row in ids] == [
        "q <|end|>q <|end|>x",
        "q <|end|>xq <|end|>",
    ]


def test_a_folder_without_a_classifier_raises(tmp_path: Path) -> None:
    with pytest.raises(UnusableBaseError, match="no classifier"):
        load_entailment(str(tmp_path))
