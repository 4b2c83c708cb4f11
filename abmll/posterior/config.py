"""What a posterior is of: a record for each of its four parts, kept with every artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from abmll.decoder.layout import MODULES, AdapterLayout
from abmll.similarity.gaussian_process import SimilarityConfig

# Support examples after which a posterior has the temperature `TemperatureRule.base`.
TEMPERATURE_AT = 16
# The fewest and the most support examples that the growth of a temperature is fitted on.
TEMPERATURE_SIZES = (4, 32)


@dataclass(frozen=True)
class NoiseConfig:
    """How an adapter is random.

    `family` names a noise family (`noise/families.py`). `offset` is the constant c: a log-variance for the
    family `output` (the paper's -20), a standard deviation of the weight for `weight`. `rank` is m of the
    sign-structured draw. `scale` multiplies every standard deviation in prediction. It is calibrated after
    training, and adaptation does not know it.
    """

    family: str = "weight"
    offset: float = 1e-3
    rank: int = 4
    scale: float = 1.0

    def as_point(self) -> NoiseConfig:
        """Return the noise of a point: the `weight` family with a standard deviation of zero."""
        return replace(self, family="weight", offset=0.0, scale=1.0)

    @property
    def is_point(self) -> bool:
        """Whether c is that of a point."""
        return self == self.as_point()


@dataclass(frozen=True)
class TemperatureRule:
    """The temperature of a task posterior, by how many examples it was adapted to.

    A temperature flattens (above 1) or sharpens the averaged distribution over options. `base` is the one
    after 16 examples, and that after n is `base` x (16 / n)^`exponent`. `multiple_choice` takes the place of
    `base` where options differ from question to question (None: `base` is for both).
    """

    base: float = 1.0
    exponent: float = 0.0
    multiple_choice: float | None = None

    def after(self, examples: int, *, multiple_choice: bool = False) -> float:
        """Return the temperature after `examples` support examples.

        The fewer examples there are, the more often a fixed number of steps sees each, and the surer of too
        much they make the posterior. Outside `TEMPERATURE_SIZES`, between which rules are fitted, the
        temperature stays as it is at their ends.
        """
        base = (self.multiple_choice if multiple_choice else None) or self.base
        fewest, most = TEMPERATURE_SIZES
        return float(base * (TEMPERATURE_AT / min(max(examples, fewest), most)) ** self.exponent)


@dataclass(frozen=True)
class PosteriorConfig:
    """What is adapted, how it is random, its temperature, and the Gaussian process beside it (None: there is none).

    The temperature rule of a task posterior is one number, its `base`.
    """

    layout: AdapterLayout = field(default_factory=AdapterLayout)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    temperature: TemperatureRule = field(default_factory=TemperatureRule)
    similarity: SimilarityConfig | None = None

    @property
    def sentence_encoder(self) -> str | None:
        """The name of the sentence encoder that the posterior needs, if any."""
        return self.similarity.sentence_encoder if self.similarity else None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a manifest, in the one flat form that files have had from the beginning.

        What has no effect is left out, as in files from before it existed, so that digests stay what they were.
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
        if temperature.base != 1:
            values["temperature"] = temperature.base
        if temperature.exponent != 0:
            values["temperature_exponent"] = temperature.exponent
        if temperature.multiple_choice is not None:
            values["choice_temperature"] = temperature.multiple_choice
        if similarity is not None:
            values["head_weight"] = similarity.weight
            values["head_noise"] = similarity.noise
            values["head_spread"] = similarity.spread
            if similarity.sentence_encoder is not None:
                values["sentence_encoder"] = similarity.sentence_encoder
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote, now or before a key existed. Raises `TypeError` for an unknown key."""
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
            NoiseConfig(known["noise"], known["spread_offset"], known["noise_rank"], known["noise_scale"]),
            TemperatureRule(known["temperature"], known["temperature_exponent"], known["choice_temperature"]),
            similarity,
        )


# Every key of the flat form, with what it means where a file does not have it.
_DEFAULTS: dict[str, Any] = {
    "rank": 8, "alpha": 16.0, "modules": MODULES, "first_layer": 0,
    "noise": "weight", "spread_offset": 1e-3, "noise_rank": 4, "noise_scale": 1.0,
    "temperature": 1.0, "temperature_exponent": 0.0, "choice_temperature": None,
    "head_weight": 0.0, "head_noise": 0.5, "head_spread": 0.5, "sentence_encoder": None,
}  # fmt: skip
