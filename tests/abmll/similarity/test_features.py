"""Features of a prompt: whitened states of the trunk, and the embedding of its input."""

import pytest
import torch

from abmll.similarity.features import Features, Whitening, mean_state
from abmll.similarity.sentence_encoder import SentenceEncoder
from tests.tiny import tiny_sentence_encoder

TEXTS = ["Paris", "the film was wonderful and the actors were great", "dull", "I want my money back", ""]


def unit(count: int, size: int, seed: int) -> torch.Tensor:
    """Return random vectors [count, size] of length 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, size, generator=generator), dim=1)


def test_whitened_states_have_mean_zero_and_covariance_one() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 4, generator=generator)
    tasks = [torch.randn(500, 4, generator=generator) @ mixing + 100 for _ in range(2)]
    plain = torch.stack([Whitening.of(tasks, shrinkage=0)(state) for state in torch.cat(tasks)])
    torch.testing.assert_close(plain.mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cov(plain.T), torch.eye(4), atol=1e-3, rtol=0)
    shrunk = torch.stack([Whitening.of(tasks, shrinkage=0.5)(state) for state in torch.cat(tasks)])
    assert torch.linalg.eigvalsh(torch.cov(shrunk.T)).max() < 1


def test_whitening_of_more_directions_than_inputs_stays_finite() -> None:
    found = Whitening.of([unit(3, 8, seed=0), unit(3, 8, seed=1)])
    assert torch.isfinite(found(unit(1, 8, seed=2)[0])).all()


def test_a_state_is_the_mean_of_all_tokens_but_the_first() -> None:
    hidden = torch.tensor([[100.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    assert mean_state(hidden).tolist() == [0, 2]
    assert mean_state(hidden[:1]).tolist() == [100, 0]  # where there is no other
    assert Features()([hidden, hidden[:1]], ["", ""]).tolist() == [[0, 1], [1, 0]]


def test_states_are_whitened_and_then_of_unit_length() -> None:
    hidden = [torch.randn(n, 6, generator=torch.Generator().manual_seed(n)) for n in (3, 4)]
    found = Features(Whitening(torch.ones(6), torch.diag(torch.arange(6.0))))(hidden, ["", ""])
    expected = (mean_state(hidden[1]) - 1) * torch.arange(6.0)
    torch.testing.assert_close(found[1], expected / expected.norm())


def test_likeness_is_the_mean_of_that_of_states_and_that_of_embeddings() -> None:
    hidden = [torch.randn(5, 6, generator=torch.Generator().manual_seed(n)) for n in range(len(TEXTS))]
    encoder = SentenceEncoder(*tiny_sentence_encoder(), max_tokens=40)
    states, embeddings, both = (
        Features()(hidden, TEXTS),
        encoder(TEXTS),
        Features(encoder=encoder)(hidden, TEXTS),
    )
    expected = (states @ states.T + embeddings @ embeddings.T) / 2
    torch.testing.assert_close(both @ both.T, expected)
    torch.testing.assert_close(both.norm(dim=1), torch.ones(len(TEXTS)))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 32])
def test_an_embedding_is_the_mean_over_a_texts_own_tokens_however_texts_are_batched(
    batch: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SentenceEncoder, "BATCH", batch)
    monkeypatch.setattr(SentenceEncoder, "TOKENS", 3 * batch)
    if not packed:
        monkeypatch.setattr("abmll.similarity.sentence_encoder.packs", lambda model: False)
    model, tokenizer = tiny_sentence_encoder()
    found = SentenceEncoder(model, tokenizer, max_tokens=6)(TEXTS)
    model.set_attn_implementation("eager")
    for text, embedding in zip(TEXTS, found, strict=True):
        ids = torch.tensor([tokenizer(text or " ")["input_ids"][:6]])
        with torch.no_grad():
            expected = model(ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(embedding, expected / expected.norm(), atol=1e-5, rtol=1e-4)


def test_a_packed_encoder_in_bf16_gives_nearly_the_embeddings_of_fp32() -> None:
    exact = SentenceEncoder(*tiny_sentence_encoder(), max_tokens=40)(TEXTS)
    model, tokenizer = tiny_sentence_encoder()
    found = SentenceEncoder(model.to(torch.bfloat16), tokenizer, max_tokens=40)(TEXTS)
    assert found.dtype == torch.float32
    assert (found * exact).sum(-1).min() > 0.999


def test_names_are_what_gives_the_cosine_of_an_input_and_a_name() -> None:
    hidden = [torch.randn(5, 6, generator=torch.Generator().manual_seed(n)) for n in range(len(TEXTS))]
    encoder = SentenceEncoder(*tiny_sentence_encoder(), max_tokens=40)
    features, names = Features(encoder=encoder), ["positive", "not related"]
    h = features(hidden, TEXTS)
    torch.testing.assert_close(h @ features.names(names, h.shape[1]).T, encoder(TEXTS) @ encoder(names).T)
    assert not Features().names(names, 6).any()


def test_text_that_reads_like_a_control_token_is_text_to_the_sentence_encoder() -> None:
    model, tokenizer = tiny_sentence_encoder()
    encode = SentenceEncoder(model, tokenizer, 48)
    seen = []
    forward = model.forward

    def spy(**inputs: torch.Tensor) -> object:
        seen.append(inputs["input_ids"])
        return forward(**inputs)

    model.forward = spy
    encode(["<|end|>", "a<|end|>b"])
    (ids,) = seen
    assert tokenizer.decode(ids[0]) == "<|end|>a<|end|>b"
    assert tokenizer.eos_token_id not in ids
