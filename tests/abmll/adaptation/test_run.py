"""Adaptation: the optimiser, the batches, and what does and does not move the result."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from abmll.adaptation.adamw import AdamW
from abmll.adaptation.loss import Batch, step_loss
from abmll.adaptation.run import Room, adapt_step, batch_order, resting_step
from abmll.adaptation.settings import AdaptSettings, settings_of
from abmll.adaptation.support import prepare
from abmll.decoder.layout import unflatten
from abmll.decoder.passes import Pace
from abmll.decoder.rows import token_batches
from abmll.errors import FitDivergedError, OptionsError, PromptTooLongError, SupportError
from abmll.model import FewShotModel
from abmll.posterior.config import TemperatureRule
from abmll.posterior.noise.weight import weight_divergences
from abmll.posterior.posteriors import GlobalPosterior, TaskPosterior
from abmll.text.tasks import Example

FAST = AdaptSettings(steps=4, learning_rate=0.01, batch_size=3)


def test_adamw_is_pytorchs_without_weight_decay() -> None:
    start = torch.randn(20, generator=torch.Generator().manual_seed(0))
    gradients = torch.randn(5, 20, generator=torch.Generator().manual_seed(1))
    theirs = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.AdamW([theirs], lr=0.03, weight_decay=0.0)
    ours, state = start.clone(), AdamW.zeros_like(start)
    for gradient in gradients:
        theirs.grad = gradient.clone()
        optimiser.step()
        ours = state.update(ours, gradient, 0.03)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_batches_are_whole_passes_in_random_order() -> None:
    batches = batch_order(5, 2, 5, seed=3)
    flat = [i for batch in batches for i in batch]
    assert all(len(batch) == len(set(batch)) == 2 for batch in batches)
    assert sorted(flat) == sorted([*range(5)] * 2)
    assert batches == batch_order(5, 2, 5, seed=3)
    assert batches != batch_order(5, 2, 5, seed=4)
    assert batch_order(2, 8, 2, seed=0) in (
        [[0, 1], [0, 1]],
        [[0, 1], [1, 0]],
        [[1, 0], [0, 1]],
        [[1, 0], [1, 0]],
    )


def test_token_batches_cover_everything_within_the_budget() -> None:
    lengths = [5, 40, 7, 7, 100, 3]
    batches = token_batches(lengths, 50)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert all(sum(lengths[i] for i in b) <= 50 for b in batches if len(b) > 1)


@pytest.mark.parametrize("family", ["weight", "output"])
def test_adapting_lowers_the_loss_on_the_support_and_repeats_exactly(
    family: str, make_model: Callable[..., FewShotModel], support: list[Example]
) -> None:
    offset = 0.02 if family == "weight" else -8.0
    model = make_model(family=family, offset=offset)
    settings = replace(FAST, steps=12)
    first, again = model.adapt(support, settings, seed=1), model.adapt(support, settings, seed=1)
    assert torch.equal(first.posterior.values, again.posterior.values)
    assert first.losses == again.losses
    assert first.losses[-1] < 0.5 * first.losses[0]
    assert not torch.equal(first.posterior.values, model.adapt(support, settings, seed=2).posterior.values)
    assert torch.equal(model.adapt(support, replace(settings, steps=0)).posterior.values, model.prior.values)


def test_the_likelihood_does_not_depend_on_theta(
    make_model: Callable[..., FewShotModel], support: list[Example]
) -> None:
    """theta's adapters never enter the forward pass. They move the divergence only."""
    for family, offset in (("weight", 0.02), ("output", -8.0)):
        model = make_model(family=family, offset=offset)
        prepared = prepare(model.backbone, model.encode_support(support))
        rank, sites = model.prior.config.layout.rank, model.prior.sites
        phi = unflatten(model.prior.values[None], sites, rank)
        losses = []
        for theta in (model.prior.values, model.prior.values * 1.1):
            arguments: Any = {"seeds": [1, 2, 3], "kl_seeds": [0]}
            prior = unflatten(theta[None], sites, rank)
            losses.append(
                step_loss(
                    model.backbone,
                    model.prior.config,
                    Batch.of([(0, prepared, i) for i in range(3)], torch.device("cpu")),
                    phi,
                    prior=prior,
                    **arguments,
                )
            )
        assert torch.equal(losses[0].nll, losses[1].nll)
        assert float(losses[0].kl.detach()) == pytest.approx(0, abs=1e-3)
        assert float(losses[1].kl.detach()) > 1


@pytest.mark.parametrize("family", ["weight", "output"])
def test_two_tasks_in_one_batch_get_the_gradients_they_get_alone(
    family: str, make_model: Callable[..., FewShotModel], support: list[Example]
) -> None:
    model = make_model(family=family, offset=0.02 if family == "weight" else -8.0)
    config, sites = model.prior.config, model.prior.sites
    prepared = prepare(model.backbone, model.encode_support(support))
    both = torch.stack([model.prior.values, model.prior.values * 1.2]).requires_grad_()
    cpu = torch.device("cpu")

    def gradient(values: torch.Tensor, chosen: list[int], tasks: list[int], seeds: list[int]) -> torch.Tensor:
        loss = step_loss(
            model.backbone, config, Batch.of([(t, prepared, i) for t, i in zip(tasks, chosen, strict=True)], cpu),
            unflatten(values, sites, config.layout.rank), seeds=seeds,
        )  # fmt: skip
        (found,) = torch.autograd.grad(loss.nll.sum(), values)
        return found

    together = gradient(both, [0, 3, 1, 2], [0, 0, 1, 1], [11, 14, 12, 13])
    first = gradient(both[:1].detach().requires_grad_(), [0, 3], [0, 0], [11, 14])
    second = gradient(both[1:].detach().requires_grad_(), [1, 2], [0, 0], [12, 13])
    torch.testing.assert_close(together, torch.cat([first, second]), atol=1e-4, rtol=1e-3)


def test_beta_holds_phi_near_theta(make_model: Callable[..., FewShotModel], support: list[Example]) -> None:
    model = make_model()
    free, held = (model.adapt(support, replace(FAST, beta=beta), seed=1).posterior for beta in (0.0, 1e-2))

    def divergence(phi: TaskPosterior) -> float:
        tensors = (unflatten(p.values[None], p.sites, p.config.layout.rank) for p in (phi, model.prior))
        return float(weight_divergences(model.prior.config, model.prior.sites, *tensors)[0])

    assert divergence(held) < 0.8 * divergence(free)


def test_free_text_support_is_learnt(make_model: Callable[..., FewShotModel]) -> None:
    support = [Example(f"the capital {i}", "Paris") for i in range(4)]
    losses = make_model().adapt(support, AdaptSettings(steps=15, learning_rate=0.02, batch_size=4)).losses
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([], SupportError, "empty"),
        ([Example("a", "x", ("x", "y")), Example("b", "x", ("x", "y"))], SupportError, "two classes"),
        ([Example("a", "z", ("x", "y"))], OptionsError, "not among"),
        ([Example("a", "x", ("x", "x "))], OptionsError, "differ only by white space"),
        ([Example("a", "x", ("x", "y")), Example("b", "free")], SupportError, "some have none"),
        (
            [Example("word " * 300, "x", ("x", "y")), Example("b", "y", ("x", "y"))],
            PromptTooLongError,
            "at most 256",
        ),
    ],
)
def test_unusable_support_is_refused(
    bad: list[Example], error: type[Exception], message: str, make_model: Callable[..., FewShotModel]
) -> None:
    with pytest.raises(error, match=message):
        make_model().adapt(bad)


def test_theta_of_another_model_is_refused(make_model: Callable[..., FewShotModel]) -> None:
    from abmll.errors import PosteriorMismatchError
    from tests.tiny import tiny_model, tiny_tokenizer

    prior: GlobalPosterior = make_model("gpt_neox").prior
    with pytest.raises(PosteriorMismatchError, match="other layers"):
        FewShotModel(tiny_model(), tiny_tokenizer(), prior)


@pytest.mark.parametrize("room", [0, 10_000])
@pytest.mark.parametrize("most", [1, 100])
@pytest.mark.parametrize("family", ["weight", "output"])
def test_a_step_with_rests_is_the_step_as_a_whole(
    family: str,
    most: int,
    room: int,
    make_model: Callable[..., FewShotModel],
    support: list[Example],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`most` bounds a piece; with `room` for its tokens, a pass is kept and not computed again."""
    model = make_model(family=family, offset=0.02 if family == "weight" else -6.0)
    settings = replace(FAST, beta=1e-4, batch_size=6)
    results = []
    for tokens in (10_000, 20):
        run = model.begin_adapt(support, settings, seed=1)
        while not run.done:
            adapt_step(model.backbone, [run], tokens)
        results.append(run.result())
    for module in ("decoder.passes", "adaptation.run"):  # some of the rows are longer than a block
        monkeypatch.setattr(f"abmll.{module}.BLOCK_TOKENS", 24)
    resting = model.begin_adapt(support, settings, seed=1)
    lengths = [len(states) for states in resting.prepared.hidden]
    assert min(lengths) <= 24 < max(lengths)
    rests = 0
    while not resting.done:
        rests += len(list(resting_step(model.backbone, resting, 40, Pace(most), Room(room))))
    assert rests > 2 * settings.steps
    results.append(resting.result())
    whole, *others = results
    for other in others:
        assert other.losses == pytest.approx(whole.losses, rel=1e-4)
        torch.testing.assert_close(other.posterior.values, whole.posterior.values, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["weight", "output"])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_tasks_adapted_together_are_those_adapted_one_by_one(
    family: str, architecture: str, make_model: Callable[..., FewShotModel], support: list[Example]
) -> None:
    """The tasks differ in size, lengths, seed, rate and steps, and arrive in another order."""
    model = make_model(architecture, family=family, offset=0.02 if family == "weight" else -6.0)
    tasks = [
        (support, replace(FAST, beta=1e-5), 1),
        (support[:4], replace(FAST, steps=2, learning_rate=0.003), 2),
        ([Example(f"the capital {i}", "Paris") for i in range(3)], replace(FAST, steps=3, batch_size=1), 3),
    ]
    alone = [model.adapt(*task) for task in tasks]
    for order in ([0, 1, 2], [2, 0, 1]):
        runs = {i: model.begin_adapt(*tasks[i]) for i in order}
        while not all(run.done for run in runs.values()):
            model.step(list(runs.values()))
        for i, run in runs.items():
            assert run.losses == pytest.approx(alone[i].losses, rel=1e-3)
            torch.testing.assert_close(run.posterior.values, alone[i].posterior.values, atol=1e-3, rtol=1e-2)


def test_the_noise_scale_is_for_prediction_only(
    make_model: Callable[..., FewShotModel], support: list[Example]
) -> None:
    plain, scaled = (make_model(scale=scale, offset=0.001, random_prior=False) for scale in (1.0, 8.0))
    one, other = (model.adapt(support, replace(FAST, beta=1e-6), seed=1) for model in (plain, scaled))
    assert torch.equal(one.posterior.values, other.posterior.values)
    queries = [example.query for example in support]
    spreads = [
        max(max(p.predictive.stds) for p in model.predict(a.posterior, queries, samples=8))
        for model, a in ((plain, one), (scaled, other))
    ]
    assert spreads[1] > 3 * spreads[0]


def test_an_adapters_temperature_is_that_of_its_support(
    make_model: Callable[..., FewShotModel], support: list[Example]
) -> None:
    model = make_model(temperature=TemperatureRule(1.5, 0.5), random_prior=False)
    plain = make_model(random_prior=False)
    fitted = model.adapt(support[:4], FAST, seed=1).posterior
    assert fitted.config == replace(model.prior.config, temperature=TemperatureRule(3.0))
    assert torch.equal(fitted.values, plain.adapt(support[:4], FAST, seed=1).posterior.values)
    queries = [example.query for example in support]
    tempered, raw = (
        [p.predictive.probabilities for p in m.predict(q, queries, samples=4)]
        for m, q in ((model, fitted), (plain, replace(fitted, config=plain.prior.config)))
    )
    for one, other in zip(tempered, raw, strict=True):
        assert one == pytest.approx((torch.tensor(other).log() / 3).softmax(0).tolist(), abs=1e-5)


def test_multiple_choice_has_a_temperature_of_its_own(
    make_model: Callable[..., FewShotModel], support: list[Example]
) -> None:
    model = make_model(temperature=TemperatureRule(1.5, 0.5, 4.0), random_prior=False)
    differing = [replace(e, options=(e.output, f"{i} else")) for i, e in enumerate(support[:4])]
    turned = [replace(e, options=e.options[::-1]) if i % 2 else e for i, e in enumerate(support[:4])]
    free = [replace(e, options=()) for e in support[:4]]
    found = [model.adapt(kind, FAST, seed=1) for kind in (differing, turned, free)]
    assert [one.multiple_choice for one in found] == [True, False, False]
    assert [one.posterior.config.temperature for one in found] == list(map(TemperatureRule, (8.0, 3.0, 3.0)))


@pytest.mark.parametrize("rate", [1e30, float("inf")])
def test_a_fit_that_leaves_the_finite_numbers_is_an_error(
    make_model: Callable[..., FewShotModel], support: list[Example], rate: float
) -> None:
    model = make_model()
    with pytest.raises(FitDivergedError, match="smaller learning rate"):
        model.adapt(support, AdaptSettings(steps=3, learning_rate=rate))


def test_an_effort_is_a_number_of_steps_and_more_of_each() -> None:
    full = AdaptSettings(6, 1e-3, 8, 0.5)
    assert settings_of("full", full) == full
    assert settings_of("fast", full) == AdaptSettings(2, 2e-3, 16, 0.5)
    large = AdaptSettings(3, 2e-3, 16)
    assert settings_of("fast", large) == replace(large, steps=2)
    assert settings_of("instant", full) == AdaptSettings(0, 1e-3, 8, 0.5)
    assert settings_of("fast", replace(full, steps=1)).steps == 1
