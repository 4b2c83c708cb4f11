"""Prompts, continuations and their limits."""

import pytest

from abmll.errors import PromptTooLongError
from abmll.text.prompting import PromptEncoder, PromptTemplate
from abmll.text.tasks import Example, Query
from tests.tiny import tiny_tokenizer

TEMPLATE = PromptTemplate("Review: ", "\nLabel:", " ")


def test_options_are_continuations_of_one_prompt() -> None:
    encoder = PromptEncoder(tiny_tokenizer(), TEMPLATE, 100)
    encoded = encoder.encode(Query("great film", ("positive", " not related ")))
    decode = encoder.tokenizer.decode
    assert decode(encoded.prompt) == "Review: great film\nLabel:"
    assert [decode(ids) for ids in encoded.continuations] == [" positive", " not related"]
    assert encoded.tokens == len(encoded.prompt) + sum(map(len, encoded.continuations))


def test_free_text_ends_with_end_of_text() -> None:
    encoder = PromptEncoder(tiny_tokenizer(), TEMPLATE, 100)
    encoded = encoder.encode_example(Example("great film", "Paris"))
    ((*output, end),) = encoded.continuations
    assert end == encoder.end_of_text == 0
    assert encoder.decode((*output, end)) == "Paris"
    assert encoder.encode(Query("great film")).continuations == ()


def test_the_context_is_a_hard_limit_and_truncation_cuts_the_input_only() -> None:
    encoder = PromptEncoder(tiny_tokenizer(), TEMPLATE, 100)
    whole = encoder.encode(Query("great film", ("positive", "negative")))
    exact = PromptEncoder(tiny_tokenizer(), TEMPLATE, whole.tokens)
    assert exact.encode(Query("great film", ("positive", "negative"))) == whole
    tight = PromptEncoder(tiny_tokenizer(), TEMPLATE, whole.tokens - 1)
    with pytest.raises(PromptTooLongError) as caught:
        tight.encode(Query("great film", ("positive", "negative")))
    assert (caught.value.tokens, caught.value.limit) == (whole.tokens, whole.tokens - 1)
    cut = tight.encode(Query("great film", ("positive", "negative")), truncate=True)
    assert cut.tokens == whole.tokens - 1
    assert encoder.tokenizer.decode(cut.prompt).startswith("Review: great")
    assert encoder.tokenizer.decode(cut.prompt).endswith("\nLabel:")
    with pytest.raises(PromptTooLongError):
        PromptEncoder(tiny_tokenizer(), TEMPLATE, 4).encode(
            Query("great film", ("positive", "negative")), truncate=True
        )


def test_the_template_survives_json() -> None:
    assert PromptTemplate.from_json(TEMPLATE.to_json()) == TEMPLATE
