"""Any text gives the tokens that its characters have in the joint text, for every tokenizer.

tests/property_runs.py has the command of the long run.
"""

from __future__ import annotations

import pickle
import re
import unicodedata
from types import SimpleNamespace

import pytest
import transformers
from hypothesis import assume, example, given
from hypothesis import strategies as st

from abmll.errors import UnsupportedModelError
from abmll.text.prompting import PromptEncoder, PromptTemplate
from abmll.text.tasks import Example, Query
from abmll.text.tokens import TextTokens
from tests.abmll.text.tokenizers import CONTROL, END, FAMILIES, UNKNOWN, family
from tests.property_runs import tries

TEMPLATES = (
    PromptTemplate(),
    PromptTemplate("Review: ", "\nLabel:", " "),
    PromptTemplate(after_input="", before_output=" "),
    PromptTemplate(after_input="\n\n", before_output=" "),
    PromptTemplate(after_input=" ->", before_output="\n"),
    PromptTemplate(after_input="\nAnswer: ", before_output=""),
)
SNIPPETS = (
    *CONTROL, "<0x41>", "<0x", "</s", "s>", " ", "  ", "\n", "\t", "\u2581", "\u00a0", "##ing", "don't", "great", "billing",
    "0123", "a.pdf", "\u0301", "\u00e9", "\ufb01", "\u4f60\u597d", "\U0001f469\u200d\U0001f52c", "\u202e", "\x00", "\u0130",
)  # fmt: skip
NOT_A_NAME = st.characters(codec="utf-8", exclude_characters="\U0010fff0\U0010fff1")
TEXTS = st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(NOT_A_NAME, max_size=4)), max_size=6).map(
    "".join
)
OPTIONS = TEXTS.filter(str.strip)
AS_CONTROL = frozenset(range(len(CONTROL))) - {UNKNOWN}
SENTENCE_PIECE = {name for name in FAMILIES if name.startswith(("unigram", "sentence_piece"))}
BYTE_NAME = re.compile("<0x[0-9A-F]{2}>")


TOKENS = {name: TextTokens(family(name).tokenizer) for name in FAMILIES}
IN_FRONT = {"word_piece": (CONTROL.index("[CLS]"),)}  # the only one that marks a text's beginning


def encoder(name: str, template: PromptTemplate = TEMPLATES[0], max_tokens: int = 10_000) -> PromptEncoder:
    return PromptEncoder(family(name).tokenizer, template, max_tokens, TOKENS[name])


@tries(400)
@given(st.sampled_from(sorted(FAMILIES)), st.sampled_from(TEMPLATES), TEXTS, OPTIONS)
@example("unigram", TEMPLATES[0], "my card was charged twice", "billing")
@example("unigram", TEMPLATES[0], "</s>", "a</s>b")
@example("sentence_piece_bpe", TEMPLATES[0], "", "<filename>a.pdf")
@example("word_piece_between_spaces", TEMPLATES[0], "[SEP] x", "[CLS]")
@example("byte_level_bpe", TEMPLATES[0], "<|im_end|>", "<|im_end|>")
@example("byte_level_bpe_with_a_prefix_space", TEMPLATES[-1], "<s>", "</s>")
def test_prompt_and_option_have_the_tokens_of_the_joint_text(
    name: str, template: PromptTemplate, text: str, option: str
) -> None:
    before = template.before_input + text + template.after_input
    behind = template.before_output + option.strip()
    assume(before.strip())  # else the option is the beginning of the joint text
    encoded = encoder(name, template).encode(Query(text, (option, f"{option} not")))
    front = len(IN_FRONT.get(name, ()))
    assert encoded.prompt[:front] == IN_FRONT.get(name, ())
    prompt, continuation = encoded.prompt[front:], encoded.continuations[0]
    assert not AS_CONTROL & {*prompt, *continuation}
    _, twin, keeps_text = family(name)
    if keeps_text and not (name in SENTENCE_PIECE and "\u2581" in option):
        assert TOKENS[name].decode(continuation) == option.strip()
    if name == "unigram" and BYTE_NAME.search(before + behind):
        return  # the twin takes the name of a byte for the byte
    if name == "unigram_with_metaspace" and "  " in unicodedata.normalize("NFKC", before[-1] + behind[0]):
        return  # the normalizer would make one space of two
    joint = twin.encode(before + behind, add_special_tokens=False)
    spans, cut = list(zip(joint.ids, joint.offsets, strict=True)), len(before)
    if any(start < cut < end for _, (start, end) in spans):
        return  # a token would span prompt and option
    assert prompt == tuple(i for i, (start, _) in spans if start < cut)
    assert continuation == tuple(i for i, (start, _) in spans if start >= cut)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_joint_text_is_what_is_compared_in_most_cases(name: str) -> None:
    """The property above is not empty: the first template never lets a token span prompt and
    option.
    """
    twin = family(name).twin
    for option in ("billing", "not related", "0123"):
        joint = twin.encode(f"great film\nAnswer: {option}", add_special_tokens=False)
        encoded = encoder(name).encode(Query("great film", (option, "x")))
        assert (*encoded.prompt, *encoded.continuations[0]) == (*IN_FRONT.get(name, ()), *joint.ids)


def test_an_option_behind_sentence_piece_has_no_space_token_of_its_own() -> None:
    own = family("unigram").tokenizer
    assert own.convert_ids_to_tokens(own(" billing")["input_ids"])[:1] == [
        "\u2581"
    ]  # as options were read once
    tokens = own.convert_ids_to_tokens(TOKENS["unigram"].behind(" billing"))
    assert "".join(tokens) == "\u2581billing"
    assert tokens[0] != "\u2581"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("text", [*CONTROL, "a.pdf<filename>", "</s></s>", "<|im_end|>\n<|im_end|>"])
def test_text_that_reads_like_a_control_token_is_text(name: str, text: str) -> None:
    own = family(name).tokenizer
    assert set(range(len(CONTROL))) & {*own(text)["input_ids"]}  # what the tokenizer itself does
    encoded = encoder(name).encode_example(Example(text, text))
    (*output, end) = encoded.continuations[0]
    assert end == END
    assert not AS_CONTROL & {*encoded.prompt[len(IN_FRONT.get(name, ())) :], *output}
    if family(name).keeps_text:
        assert TOKENS[name].decode((*output, end)) == text


@pytest.mark.parametrize("name", ["unigram", "sentence_piece_bpe", "sentence_piece_bpe_with_metaspace"])
def test_the_name_of_a_byte_is_text(name: str) -> None:
    assert TOKENS[name].decode(TOKENS[name].behind(" <0x41> <0x0A>")) == "<0x41> <0x0A>"


@pytest.mark.parametrize("name", FAMILIES)
def test_an_input_that_is_cut_keeps_the_tokens_of_what_is_left_and_of_the_template(name: str) -> None:
    query = Query("the film was wonderful and great", ("billing", "refund"))
    whole = encoder(name).encode(query)
    (tail,) = {TOKENS[name].behind("\nAnswer:")}
    cut = encoder(name, max_tokens=whole.tokens - 1).encode(query, truncate=True)
    assert whole.prompt[-len(tail) :] == tail
    assert cut.prompt == (*whole.prompt[: -len(tail) - 1], *tail)


def test_an_empty_text_has_the_mark_of_a_beginning_alone() -> None:
    assert {name: TOKENS[name].first("") for name in FAMILIES} == {n: IN_FRONT.get(n, ()) for n in FAMILIES}
    assert {TOKENS[name].behind("") for name in FAMILIES} == {()}


def test_what_was_written_is_decoded_whole_but_for_its_end() -> None:
    tokens, own = TOKENS["byte_level_bpe"], family("byte_level_bpe").tokenizer
    control = own.convert_tokens_to_ids("<filename>")
    written = (control, *tokens.behind("a.pdf"), END)
    assert tokens.decode(written) == "<filename>a.pdf"
    assert tokens.decode(written[:-1]) == "<filename>a.pdf"
    assert tokens.decode((END,)) == tokens.decode(()) == ""


def test_the_rule_survives_pickling() -> None:
    for name in FAMILIES:
        sent = pickle.loads(pickle.dumps(encoder(name)))
        query = Query("</s> [SEP] great", ("<filename>a.pdf", "billing"))
        assert sent.encode(query) == encoder(name).encode(query)


def test_a_character_that_is_a_control_token_keeps_its_token() -> None:
    tokenizer = family("byte_level_bpe").tokenizer
    changed = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        eos_token="</s>",
        pad_token="!",
    )
    assert TextTokens(changed).behind(" great!") == TOKENS["byte_level_bpe"].behind(" great!")


def test_a_control_token_that_a_merge_makes_is_still_not_text() -> None:
    own = family("byte_level_bpe").tokenizer
    word = max((token for token in own.get_vocab() if token.isalpha() and token.isascii()), key=len)
    changed = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own.backend_tokenizer.from_str(own.backend_tokenizer.to_str()),
        eos_token="</s>",
        pad_token=word,
    )
    tokens = TextTokens(changed)
    assert len(word) > 1
    assert changed.pad_token_id in own(word)["input_ids"]
    assert changed.pad_token_id not in tokens.behind(word)
    assert tokens.decode(tokens.behind(f"a {word} film")) == f"a {word} film"


def test_a_tokenizer_of_another_library_is_refused_by_name() -> None:
    class Slow(SimpleNamespace):
        eos_token_id = 0

    with pytest.raises(UnsupportedModelError, match=r"the model's tokenizer is a Slow: .* tokenizer\.json"):
        PromptEncoder(Slow(), TEMPLATES[0], 100)
