"""The configuration of a posterior, its temperature rule, and its flat form in files."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from abmll.decoder.layout import AdapterLayout, Site, flat_size
from abmll.posterior.config import NoiseConfig, PosteriorConfig, TemperatureRule
from abmll.posterior.posteriors import GlobalPosterior
from abmll.similarity.features import Whitening
from abmll.similarity.gaussian_process import SimilarityConfig
from model_store.tensors import posterior_digest

SITES = (Site(1, "q", 6, 4), Site(1, "down", 5, 6))
LAYOUT = AdapterLayout(2, 4.0, ("q", "down"), 1)
FLAT_LAYOUT = {"rank": 2, "alpha": 4.0, "modules": ["q", "down"], "first_layer": 1}
# Configurations; what the code of commit a933237, before they were composed, wrote for each;
# and its digests of a posterior of values 0, 1/8, 2/8, ... without and with a whitening.
WRITTEN_BEFORE: list[tuple[PosteriorConfig, dict[str, Any], str, str]] = [
    (
        PosteriorConfig(LAYOUT),
        {"noise": "weight", "spread_offset": 0.001, "noise_rank": 4, "noise_scale": 1.0},
        "2c70dd24731b32fce3d7acb5bce3bb78db2bb567be6315569fe8027ebb3d58fc",
        "ab5f67303911bfa7055bc68de389c2934021f8fe4178d31bae24a56e8dae18f8",
    ),
    (
        PosteriorConfig(LAYOUT, NoiseConfig("output", -20.0, scale=2.0), TemperatureRule(2.18, 0.41, 3.3)),
        {
            "noise": "output", "spread_offset": -20.0, "noise_rank": 4, "noise_scale": 2.0,
            "temperature": 2.18, "temperature_exponent": 0.41, "choice_temperature": 3.3,
        },
        "b6d2b985d0474ad82da77cbb613b31dd344dd8de62d26659d57d2957a4e85019",
        "19d44f22bfcd943cf6973f412db1b0cc0cc85fdcb4ddbc4bfee9748dfe913f48",
    ),
    (
        PosteriorConfig(
            LAYOUT,
            NoiseConfig(rank=1),
            TemperatureRule(1.5),
            SimilarityConfig(4.0, 0.25, 0.75, "all-minilm-l6-v2"),
        ),
        {
            "noise": "weight", "spread_offset": 0.001, "noise_rank": 1, "noise_scale": 1.0, "temperature": 1.5,
            "head_weight": 4.0, "head_noise": 0.25, "head_spread": 0.75, "sentence_encoder": "all-minilm-l6-v2",
        },
        "bb5386b7f730c09efb7ee49ecd1706cfa1adf10799fabb457c62f9a0df556079",
        "a91214d277f421f57179f63f470111c531eea5cb33950aeef1e0065d0c0bbc0e",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("config", "flat", "plain", "whitened"), WRITTEN_BEFORE)
def test_the_flat_form_and_the_digests_are_those_of_files_written_before(
    config: PosteriorConfig, flat: dict[str, Any], plain: str, whitened: str
) -> None:
    assert list(config.to_json().items()) == list({**FLAT_LAYOUT, **flat}.items())
    assert PosteriorConfig.from_json({**FLAT_LAYOUT, **flat}) == config
    values = torch.arange(flat_size(SITES, 2), dtype=torch.float32) / 8
    assert posterior_digest(GlobalPosterior(config, SITES, values)) == plain
    whitening = Whitening(torch.arange(3.0), torch.eye(3))
    assert posterior_digest(GlobalPosterior(config, SITES, values, whitening)) == whitened


def test_what_a_file_does_not_say_has_no_effect_and_what_is_unknown_is_refused() -> None:
    assert PosteriorConfig.from_json(FLAT_LAYOUT) == PosteriorConfig(LAYOUT)
    with pytest.raises(TypeError, match="wieght"):
        PosteriorConfig.from_json({**FLAT_LAYOUT, "wieght": 1})


def test_the_temperature_falls_with_more_examples_as_far_as_it_was_fitted() -> None:
    rule = TemperatureRule(1.5, 0.5, 4.0)
    found = [rule.after(n) for n in (0, 4, 8, 16, 32, 1000)]
    assert found == pytest.approx([3.0, 3.0, 1.5 * 2**0.5, 1.5, 1.5 / 2**0.5, 1.5 / 2**0.5])
    assert replace(rule, exponent=0.0).after(4) == 1.5
    assert rule.after(16, multiple_choice=True) == 4.0
    assert replace(rule, multiple_choice=None).after(16, multiple_choice=True) == 1.5


def test_questions_have_temperatures_of_their_own_which_survive_the_flat_form() -> None:
    rule = TemperatureRule(2.0).times(1.5, {(4, 5): 0.5, (6,): 2.0})
    assert [rule.of_question(ids) for ids in ((4, 5), (6,), (), (7,))] == [1.0, 4.0, 3.0, 3.0]
    config = PosteriorConfig(LAYOUT, temperature=rule)
    assert config.to_json()["question_temperatures"] == [[[4, 5], 1.0], [[6], 4.0]]
    assert PosteriorConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert rule.times(2.0) == TemperatureRule(6.0)


def test_a_point_is_noise_of_which_nothing_is_left() -> None:
    noise = NoiseConfig("output", -20.0, rank=2, scale=3.0)
    assert not noise.is_point
    assert noise.as_point() == NoiseConfig("weight", 0.0, rank=2)
    assert noise.as_point().is_point


def test_the_scale_of_the_readout_survives_the_flat_form() -> None:
    noise = NoiseConfig(scale=2.0, readout_scale=4.0)
    config = PosteriorConfig(LAYOUT, noise)
    assert config.to_json()["readout_noise_scale"] == 4.0
    assert PosteriorConfig.from_json(config.to_json()) == config
    assert noise.in_training() == NoiseConfig()
