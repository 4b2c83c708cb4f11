"""The configuration of a posterior: one record for each of its four parts.

Every artifact and every adapter keeps one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, TypeAlias

from abmll.decoder.layout import MODULES, AdapterLayout
from abmll.similarity.gaussian_process import SimilarityConfig

# Number of support examples for which the temperature is `TemperatureRule.base`.
TEMPERATURE_AT = 16
# The smallest and the largest number of support examples that a temperature rule is fitted on.
TEMPERATURE_SIZES = (4, 32)
ReadoutChoice: TypeAlias = float | Literal["off"] | None
"""How samples of a posterior shall differ: in the readout alone at a scale, in every site (`off`),
or as the posterior says (None)."""


@dataclass(frozen=True)
class NoiseConfig:
    """How a posterior is sampled.

    `family` names a noise family (`noise/families.py`). `offset` is the constant c: a log-variance
    for the family `output` (-20 in the paper), a standard deviation of the weight for `weight`.
    `rank` is m, the number of sign vectors of a sample.

    The others are chosen after training. They are for prediction, and adaptation does not use them.
    `scale` multiplies every standard deviation. With a `readout_scale`, only the readout has noise
    (`decoder/readout.py`), at that scale, and samples share all activations before it; with None,
    every site has noise.
    """

    family: str = "weight"
    offset: float = 1e-3
    rank: int = 4
    scale: float = 1.0
    readout_scale: float | None = None

    def sampled(self, readout: ReadoutChoice) -> NoiseConfig:
        """Return the noise with samples that differ as `readout` says."""
        if readout is None:
            return self
        return replace(self, readout_scale=None if readout == "off" else readout)

    def in_training(self) -> NoiseConfig:
        """Return the noise of adaptation, which uses nothing that is chosen after training."""
        return replace(self, scale=1.0, readout_scale=None)

    def as_point(self) -> NoiseConfig:
        """Return the noise of a point: the `weight` family with a standard deviation of zero."""
        return replace(self.in_training(), family="weight", offset=0.0)

    @property
    def is_point(self) -> bool:
        """Return whether this is the noise of a point."""
        return self == self.as_point()


@dataclass(frozen=True)
class TemperatureRule:
    """The temperature of a task posterior, by the number of its examples.

    A temperature above 1 flattens the predictive, one below 1 sharpens it. After n examples it is
    `base` x (16 / n)^`exponent`, so `base` is the temperature after 16 examples. `multiple_choice`
    takes the place of `base` where options differ from input to input; with None, `base` is for
    both. `zero_shot` is the temperature of questions without examples whose options have
    descriptions; with None, it is `base`. `by_question` has the temperatures that questions of a
    task posterior have of their own, each with the tokens of its question (`EncodedPrompt.question`).
    """

    base: float = 1.0
    exponent: float = 0.0
    multiple_choice: float | None = None
    by_question: tuple[tuple[tuple[int, ...], float], ...] = ()
    zero_shot: float | None = None

    def of_question(self, question: tuple[int, ...]) -> float:
        """Return the temperature of a question, by its tokens: its own, or else `base`."""
        return dict(self.by_question).get(question, self.base)

    def times(self, factor: float, by_question: Mapping[tuple[int, ...], float] | None = None) -> Self:
        """Return the rule with `base` times `factor`, and for some questions times another factor.

        The result has no other temperatures by question than these.
        """
        own = tuple((tokens, self.base * value) for tokens, value in (by_question or {}).items())
        return replace(self, base=self.base * factor, by_question=own)

    def after(self, examples: int, *, multiple_choice: bool = False) -> float:
        """Return the temperature after `examples` support examples.

        With fewer examples, a fixed number of steps uses each of them more often, and the posterior
        becomes more overconfident. Rules are fitted for numbers of examples in `TEMPERATURE_SIZES`.
        Outside of that range the temperature stays what it is at the nearer end.
        """
        base = (self.multiple_choice if multiple_choice else None) or self.base
        fewest, most = TEMPERATURE_SIZES
        return float(base * (TEMPERATURE_AT / min(max(examples, fewest), most)) ** self.exponent)


@dataclass(frozen=True)
class PosteriorConfig:
    """What is adapted, the noise, the temperature, and the Gaussian process beside the adapter.

    `similarity` is None where there is no Gaussian process. In the configuration of a task
    posterior, the temperature rule is one number, its `base`, and what its questions have of their
    own.
    """

    layout: AdapterLayout = field(default_factory=AdapterLayout)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    temperature: TemperatureRule = field(default_factory=TemperatureRule)
    similarity: SimilarityConfig | None = None

    @property
    def sentence_encoder(self) -> str | None:
        """Return the name of the sentence encoder that the posterior needs, if any."""
        return self.similarity.sentence_encoder if self.similarity else None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a manifest, in the flat form that all files have.

        A value that has no effect is left out. So a record that could be written before a key
        existed is written without the key, and its digest stays what it was.
        """
        layout, noise, temperature, similarity = self.layout, self.noise, self.temperature, self.similarity
        values: dict[str, Any] = {
            "rank": layout.rank,
            "alpha": layout.alpha,
            "modules": list(layout.modules),
            "first_layer": layout.first_layer,
            "noise": noise.family,
            "spread_offset": noise.offset,
            "noise_rank": noise.rank,
            "noise_scale": noise.scale,
        }
        if noise.readout_scale is not None:
            values["readout_noise_scale"] = noise.readout_scale
        if temperature.base != 1:
            values["temperature"] = temperature.base
        if temperature.exponent != 0:
            values["temperature_exponent"] = temperature.exponent
        if temperature.multiple_choice is not None:
            values["choice_temperature"] = temperature.multiple_choice
        if temperature.zero_shot is not None:
            values["zero_shot_temperature"] = temperature.zero_shot
        if temperature.by_question:
            values["question_temperatures"] = [[list(ids), value] for ids, value in temperature.by_question]
        if similarity is not None:
            values["head_weight"] = similarity.weight
            values["head_noise"] = similarity.noise
            values["head_spread"] = similarity.spread
            if similarity.sentence_encoder is not None:
                values["sentence_encoder"] = similarity.sentence_encoder
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote, now or before a key existed.

        Raises `TypeError` for an unknown key.
        """
        if unknown := set(values) - set(_DEFAULTS):
            raise TypeError(f"unknown keys of a configuration: {', '.join(sorted(unknown))}")
        known = {**_DEFAULTS, **values}
        similarity = None
        if known["head_weight"]:
            similarity = SimilarityConfig(
                known["head_weight"], known["head_noise"], known["head_spread"], known["sentence_encoder"]
            )
        return cls(
            AdapterLayout(known["rank"], known["alpha"], tuple(known["modules"]), known["first_layer"]),
            NoiseConfig(
                known["noise"],
                known["spread_offset"],
                known["noise_rank"],
                known["noise_scale"],
                known["readout_noise_scale"],
            ),
            TemperatureRule(
                known["temperature"],
                known["temperature_exponent"],
                known["choice_temperature"],
                tuple((tuple(ids), value) for ids, value in known["question_temperatures"]),
                known["zero_shot_temperature"],
            ),
            similarity,
        )


# Every key of the flat form, with its value where a file does not have the key.
_DEFAULTS: dict[str, Any] = {
    "rank": 8, "alpha": 16.0, "modules": MODULES, "first_layer": 0,
    "noise": "weight", "spread_offset": 1e-3, "noise_rank": 4, "noise_scale": 1.0,
    "readout_noise_scale": None,
    "temperature": 1.0, "temperature_exponent": 0.0, "choice_temperature": None,
    "zero_shot_temperature": None, "question_temperatures": (),
    "head_weight": 0.0, "head_noise": 0.5, "head_spread": 0.5, "sentence_encoder": None,
}  # fmt: skip
