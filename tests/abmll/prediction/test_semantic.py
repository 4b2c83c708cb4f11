"""Free-text answers by meaning: the comparison, the clusters, and entropies with closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abmll.decoder.layout import unflatten
from abmll.decoder.rows import collate
from abmll.model import FewShotModel
from abmll.posterior.noise.families import family_of
from abmll.prediction.generation import Writing
from abmll.prediction.semantic import (
    Candidate,
    NormalisedMatch,
    TextAnswer,
    cluster,
    normalise,
    read_answers,
    semantic_entropy,
)
from abmll.prediction.uncertainty import Predictive, entropy, jackknife_information
from abmll.seeds import sample_seeds
from abmll.text.prompting import EncodedPrompt
from abmll.text.tasks import Query
from tests.tiny import tiny_model

FAMILIES = {"weight": 0.05, "output": -4.0}
log_rows = st.lists(st.lists(st.floats(-30, 0), min_size=3, max_size=3), min_size=1, max_size=9)


def h(*probabilities: float) -> float:
    return -sum(p * math.log(p) for p in probabilities if p)


# ---- equivalence ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Paris", " paris. "),
        ("The Eiffel  Tower", "eiffel tower!"),
        ("“An apple”, a pear", "apple pear"),
        ("don't know", "DON\u2019T KNOW"),
        ("well-known", "well known"),
        ("5", "(5)."),
        ("ﬁve", "FIVE"),
        ("2019-2020", "2019 \u2013 2020"),
        ("A\u2212", "a-"),
        ("(A-).", "A\u2013"),
        ("\u22125", "-5"),
        ("Cl\u207b", "Cl-"),
        ("10\u2075", "10^5"),
        ("10\u207b\u2075", "10^-5"),
        ("1\u00bd", "1 1/2"),
        ("Paris -", "Paris"),
        ("word--", "word"),
    ],
)
def test_what_reads_alike_is_the_same(text: str, other: str) -> None:
    assert NormalisedMatch().same("", text, other)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Paris", "Lyon"), ("5", "-5"), ("1.5", "15"), (".5", "5"), ("10:30", "1030"), ("C++", "C"), ("C#", "C"),
        ("50%", "50"), ("vitamin A", "vitamin"), ("?", "!"), ("", "a"), ("AT&T", "ATT"), ("not a cat", "a cat"),
        ("A-", "A"), ("A-", "A+"), ("BB-", "BB"), ("O-", "O"), ("O- positive", "O positive"), ("AA\u2013", "AA"),
        ("Na+", "Na"), ("Cl-", "Cl"), ("10\u2075", "105"), ("1\u00bd", "11/2"), ("5\u2030", "5"), ("\u00a75", "5"),
        ("5\u2032", "5\u2033"), ("5'10", "510"), ("we're", "were"), ("she'll", "shell"), ("A-", "a-b"),
    ],
)  # fmt: skip
def test_what_may_differ_in_meaning_is_not(text: str, other: str) -> None:
    assert not NormalisedMatch().same("", text, other)


@given(st.text())
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalise(text)
    assert once == " ".join(once.split())
    assert bool(once) == bool(text.split())


# ---- clusters ------------------------------------------------------------------------------------


class Near:
    """Numbers that differ by at most one are the same: not transitive."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    def same(self, question: str, a: str, b: str) -> bool:
        self.asked.append((question, a, b))
        return abs(int(a) - int(b)) <= 1


def test_clusters_of_a_transitive_equivalence_are_its_classes_in_any_order() -> None:
    texts = ["Paris", "paris.", "Lyon", "the Paris", "lyon!", "Nice"]
    classes = {frozenset({"Paris", "paris.", "the Paris"}), frozenset({"Lyon", "lyon!"}), frozenset({"Nice"})}
    for order in itertools.islice(itertools.permutations(texts), 0, 720, 37):
        found = cluster("", order, NormalisedMatch())
        assert {frozenset(order[i] for i in members) for members in found} == classes


def test_an_equivalence_that_is_not_transitive_is_not_closed() -> None:
    equivalence = Near()
    assert cluster("q", ["1", "2", "3", "9"], equivalence) == [[0, 1], [2], [3]]
    assert {question for question, *_ in equivalence.asked} == {"q"}


@given(st.lists(st.integers(0, 12), min_size=1, max_size=12))
def test_every_text_is_in_one_cluster_and_all_of_a_cluster_are_the_same(numbers: list[int]) -> None:
    texts, equivalence = list(map(str, numbers)), Near()
    found = cluster("", texts, equivalence)
    assert sorted(i for members in found for i in members) == list(range(len(texts)))
    assert len(equivalence.asked) <= len(texts) * (len(texts) - 1) / 2
    for members in found:
        assert all(equivalence.same("", texts[a], texts[b]) for a in members for b in members)


# ---- entropies -----------------------------------------------------------------------------------


def test_entropies_of_equally_probable_candidates_by_hand() -> None:
    """Two samples divide the candidates' 0.5 as 0.9 : 0.1 and as 0.1 : 0.9."""
    masses = 0.5 * torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    found = semantic_entropy(masses.log())
    assert found.total == pytest.approx(math.log(2))
    assert found.expected == pytest.approx(h(0.9, 0.1))
    # Leaving one of two samples out leaves no disagreement: the jackknife doubles the plug-in.
    assert found.mutual_information == pytest.approx(2 * (math.log(2) - h(0.9, 0.1)))


def test_a_sample_counts_by_the_probability_that_it_gives_to_the_candidates() -> None:
    masses = torch.tensor([[0.6, 0.0], [0.1, 0.1]], dtype=torch.float64)
    found = semantic_entropy(masses.log())
    assert found.total == pytest.approx(h(0.7 / 0.8, 0.1 / 0.8))
    assert found.expected == pytest.approx(0.2 / 0.8 * math.log(2))


@pytest.mark.parametrize("paired", [False, True])
def test_with_equal_totals_the_correction_is_that_of_options(paired: bool) -> None:
    g = torch.Generator().manual_seed(0)
    shares = torch.randn(10, 3, generator=g, dtype=torch.float64).softmax(-1)
    found = semantic_entropy((0.01 * shares).log(), paired=paired)
    information, _ = jackknife_information(shares, paired=paired)
    assert found.mutual_information == pytest.approx(information)
    assert found.total == pytest.approx(float(entropy(shares.mean(0))))
    assert found.expected == pytest.approx(float(entropy(shares).mean()))


@given(log_rows)
def test_total_is_within_and_between(rows: list[list[float]]) -> None:
    """The difference of the entropies is the mutual information of sample and meaning."""
    masses = torch.tensor(rows, dtype=torch.float64)
    found = semantic_entropy(masses)
    joint = masses.exp() / masses.exp().sum()
    independent = joint.sum(1, keepdim=True) * joint.sum(0)
    information = float((joint * (joint / independent).log()).sum())
    assert found.total - found.expected == pytest.approx(information, abs=1e-9)
    assert found.mutual_information >= 0


def test_semantic_information_is_unbiased_where_the_plug_in_is_low() -> None:
    """The mean over many draws of S = 8 is the value at S = 200,000.

    The candidates' total varies from sample to sample.
    """
    g = torch.Generator().manual_seed(0)

    def draw(samples: int) -> torch.Tensor:
        scores = 0.5 * torch.randn(samples, 3, generator=g, dtype=torch.float64)
        return scores - 2

    joint = draw(200_000)
    weights, within = joint.logsumexp(-1).softmax(0), joint.softmax(-1)
    truth = float(entropy(weights @ within) - weights @ entropy(within))
    found = [semantic_entropy(draw(8)) for _ in range(1500)]
    values = torch.tensor([f.mutual_information for f in found])
    plug_in = torch.tensor([f.total - f.expected for f in found])
    standard_error = float(values.std()) / math.sqrt(len(values))
    # The error that is left is of second order in 1 / S.
    assert abs(float(values.mean()) - truth) < 4 * standard_error + 0.03 * truth
    assert float(plug_in.mean()) < truth - 4 * standard_error


# ---- answers -------------------------------------------------------------------------------------


def read(rows: list[list[float]], texts: tuple[str, ...], **how: object) -> tuple[Predictive, TextAnswer]:
    candidates = [Candidate(text, len(text), complete=True) for text in texts]
    scores = torch.tensor(rows, dtype=torch.float64).log()
    return read_answers("q", candidates, scores, NormalisedMatch(), **{"samples": len(rows), **how})  # type: ignore[arg-type]


def test_the_answer_is_the_best_text_of_the_best_meaning() -> None:
    """`Lyon` is the most probable text, but Paris the most probable meaning."""
    predictive, answer = read([[0.30, 0.20, 0.15], [0.20, 0.10, 0.25]], ("Lyon", "paris", "Paris."))
    assert predictive.options == ("Paris.", "Lyon")
    assert predictive.answer == answer.clusters[0].answer == "Paris."
    assert answer.clusters[0].members == ("Paris.", "paris")
    assert predictive.probabilities == pytest.approx((0.35, 0.25))
    assert (predictive.confidence, predictive.margin) == pytest.approx((0.35, 0.10))
    assert [c.probability for c in answer.clusters] == pytest.approx([0.35, 0.25])
    assert [c.share for c in answer.clusters] == pytest.approx([0.35 / 0.6, 0.25 / 0.6])
    assert answer.sequence_logprob == pytest.approx(math.log(0.2))
    assert (answer.tokens, answer.logprob_per_token) == (6, pytest.approx(math.log(0.2) / 6))
    assert answer.entropy.total == pytest.approx(h(0.35 / 0.6, 0.25 / 0.6))


@given(log_rows)
def test_the_predictives_information_is_whether_a_candidate_and_which(rows: list[list[float]]) -> None:
    """The total entropy follows the chain rule.

    It is H of being a candidate, plus P(candidate) times the semantic entropy.
    """
    predictive, answer = read((torch.tensor(rows).double().exp() / 3).tolist(), ("a", "b", "c"))
    total = sum(predictive.probabilities)
    expected = h(total, max(0.0, 1 - total)) + total * answer.entropy.total
    assert predictive.uncertainty.total_entropy == pytest.approx(expected, abs=1e-6)


def test_the_mean_alone_has_no_spread_and_its_one_answer_is_not_certain() -> None:
    predictive, answer = read([[0.1]], ("Paris",), samples=0)
    assert predictive.samples == 0
    assert predictive.confidence == pytest.approx(0.1)
    assert (answer.entropy.total, answer.entropy.expected, answer.entropy.mutual_information) == (0, 0, 0)
    assert answer.clusters[0].share == pytest.approx(1)
    _, two = read([[0.1, 0.1]], ("Paris", "Lyon"), samples=0)
    assert two.entropy.total == two.entropy.expected == pytest.approx(math.log(2))
    assert two.entropy.mutual_information == 0


def test_texts_too_improbable_for_a_float_keep_their_order_and_shares() -> None:
    candidates = [Candidate(text, 400, complete=False) for text in ("a", "b")]
    scores = torch.tensor([[-2000.0, -1999.0]])
    predictive, answer = read_answers("", candidates, scores, NormalisedMatch(), samples=1)
    assert predictive.answer == "b"
    assert predictive.confidence == 0
    assert answer.sequence_logprob == -1999
    assert answer.clusters[0].share == pytest.approx(1 / (1 + math.exp(-1)))
    assert not answer.complete


def test_probabilities_never_exceed_one() -> None:
    predictive, answer = read([[0.9, 0.9], [0.2, 0.2]], ("Paris", "paris"))
    assert predictive.probabilities == pytest.approx(((1 + 0.4) / 2,))
    assert answer.sequence_logprob == pytest.approx(math.log(0.55))


# ---- on a model ----------------------------------------------------------------------------------

QUERY = Query("What is the capital of France?")


def test_the_sequence_log_probability_is_that_of_dense_models(
    make_model: Callable[..., FewShotModel],
) -> None:
    """Each sample's dense model scores the answer token by token; the products are averaged."""
    model, count = make_model(offset=0.05), 4
    (prediction,) = model.predict(None, [QUERY], samples=count, seed=3, max_new_tokens=6)
    assert prediction.text is not None
    prompt = model.encoder.encode(QUERY).prompt
    tensors = unflatten(model.prior.values[None], model.prior.sites, model.prior.config.layout.rank)
    samples = family_of(model.prior.config.noise).samples(
        model.prior.config, model.prior.sites, tensors,
        seeds=sample_seeds(3, 0, count, paired=True), task_of_sample=[0] * count, dtype=torch.float32,
    )  # fmt: skip
    writing = Writing(model.prior.config, model.prior.values, [prompt], count, 3, 0, 6, 10_000)
    while not writing.done:
        writing.advance(model.backbone)
    ids = next(i for i in writing.written[0] if model.encoder.decode(i) == prediction.predictive.answer)
    by_sample = []
    for n in range(count):
        dense = tiny_model()
        for site, lora in zip(model.prior.sites, samples.loras, strict=True):
            layer = dense.model.layers[site.layer]
            module = layer.self_attn if site.module in "qvo" else layer.mlp
            getattr(module, f"{site.module}_proj").weight.data += lora.b[n] @ lora.a[n]
        with torch.no_grad():
            logs = dense(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        start = len(prompt) - 1
        by_sample.append(math.exp(sum(float(logs[start + k, token]) for k, token in enumerate(ids))))
    expected = math.log(sum(by_sample) / count)
    assert prediction.text.sequence_logprob == pytest.approx(expected, abs=1e-4)
    assert prediction.text.tokens == len(ids)
    assert prediction.text.complete == (ids[-1] == 0)
    assert min(by_sample) < 0.5 * max(by_sample)  # the average of logarithms would differ


@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_are_the_averages_of_the_samples_own(
    family: str, make_model: Callable[..., FewShotModel]
) -> None:
    """The test scores all candidates under one sample at a time."""
    model, count = make_model(family=family, offset=FAMILIES[family]), 4
    run = model.begin_predict(None, [QUERY], samples=count, seed=3, max_new_tokens=6)
    while not run.done:
        model.advance([run])
    (prediction,) = run.predictions()
    (candidates,) = run._candidates
    rows = collate([EncodedPrompt(model.encoder.encode(QUERY).prompt, tuple(candidates.values()))])
    tensors = unflatten(model.prior.values[None], model.prior.sites, model.prior.config.layout.rank)
    scores = []
    for n in range(count):
        seeds = sample_seeds(3, n, n + 1, paired=family == "weight")
        sample = family_of(model.prior.config.noise).samples(
            model.prior.config, model.prior.sites, tensors,
            seeds=seeds, task_of_sample=[0], dtype=torch.float32,
        )  # fmt: skip
        with torch.no_grad():
            hidden = model.backbone.trunk(rows)
            scores.append(model.backbone.log_probs(hidden, rows, sample.for_rows([0], rows.lengths)))
    averages = dict(zip(candidates, torch.stack(scores).double().exp().mean(0).tolist(), strict=True))
    assert prediction.text is not None
    assert math.exp(prediction.text.sequence_logprob) == pytest.approx(
        averages[prediction.predictive.answer], rel=1e-4
    )
    for found in prediction.text.clusters:
        assert found.probability == pytest.approx(sum(averages[m] for m in found.members), rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("samples", [0, 1, 6])
def test_answers_of_a_model_hold_together_and_repeat(
    family: str, samples: int, make_model: Callable[..., FewShotModel]
) -> None:
    model = make_model(family=family, offset=FAMILIES[family])
    (prediction,) = model.predict(None, [QUERY], samples=samples, seed=3, max_new_tokens=6)
    predictive, answer = prediction.predictive, prediction.text
    assert answer is not None
    assert predictive.answer == answer.clusters[0].answer
    assert predictive.options == tuple(c.answer for c in answer.clusters)
    assert predictive.probabilities == pytest.approx([c.probability for c in answer.clusters])
    assert sum(c.share for c in answer.clusters) == pytest.approx(1)
    assert answer.entropy.total == pytest.approx(h(*(c.share for c in answer.clusters)))
    assert math.exp(answer.sequence_logprob) <= answer.clusters[0].probability + 1e-9
    if samples < 2:
        assert answer.entropy.total == answer.entropy.expected
        assert answer.entropy.mutual_information == 0
    else:
        assert len(answer.clusters) > 1
        assert answer.entropy.mutual_information > 0
    assert model.predict(None, [QUERY], samples=samples, seed=3, max_new_tokens=6) == [prediction]


def test_options_have_no_text(make_model: Callable[..., FewShotModel]) -> None:
    (prediction,) = make_model().predict(None, [Query("the film", ("good", "bad"))], samples=2)
    assert prediction.text is None


def test_a_models_equivalence_sees_the_question_and_decides(make_model: Callable[..., FewShotModel]) -> None:
    asked = set()

    class Anything:
        def same(self, question: str, a: str, b: str) -> bool:
            asked.add(question)
            return True

    model = make_model(offset=0.05)
    apart = model.predict(None, [QUERY], samples=6, seed=3, max_new_tokens=6)[0]
    model.equivalence = Anything()
    together = model.predict(None, [QUERY], samples=6, seed=3, max_new_tokens=6)[0]
    assert asked == {QUERY.input}
    assert together.text is not None and apart.text is not None
    (only,) = together.text.clusters
    assert sorted(only.members) == sorted(m for c in apart.text.clusters for m in c.members)
    assert only.probability == pytest.approx(sum(c.probability for c in apart.text.clusters), rel=1e-6)
    assert (together.text.entropy.total, together.text.entropy.mutual_information) == (0, 0)
