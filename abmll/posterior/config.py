"""What a posterior is of: recorded with every artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from abmll.decoder.layout import MODULES
from abmll.prediction.uncertainty import temperature_after

NoiseFamily = Literal["output", "weight"]


@dataclass(frozen=True)
class AdapterConfig:
    """What is adapted and how it is random; recorded with every posterior.

    `spread_offset` is the constant c: a log-variance for `output` (the paper's -20), a standard deviation of the
    weight for `weight`. `noise_rank` is m of the sign-structured draw. `noise_scale` multiplies every standard deviation
    in prediction, and a temperature flattens (above 1) or sharpens the averaged distribution over options; both are
    calibrated after training, and adaptation does not know them. How the temperature goes with the number of examples is
    in `uncertainty.temperature_after`; `choice_temperature` is that of multiple choice (None: the same). `head_weight`,
    `head_noise` and `head_spread` are those of the Gaussian process beside the adapter (`head.py`), calibrated likewise; with a
    weight of 0 there is none. `sentence_encoder` names one whose embeddings it sees beside the states of the trunk.
    `modules` are the names of `backbone.MODULE_NAMES`; layers below `first_layer` stay frozen and unadapted.
    """

    rank: int = 8
    alpha: float = 16.0
    modules: tuple[str, ...] = MODULES
    first_layer: int = 0
    noise: NoiseFamily = "weight"
    spread_offset: float = 1e-3
    noise_rank: int = 4
    noise_scale: float = 1.0
    temperature: float = 1.0
    temperature_exponent: float = 0.0
    choice_temperature: float | None = None
    head_weight: float = 0.0
    head_noise: float = 0.5
    head_spread: float = 0.5
    sentence_encoder: str | None = None

    @property
    def scaling(self) -> float:
        """s = alpha / rank."""
        return self.alpha / self.rank

    def without_noise(self) -> AdapterConfig:
        """The same adapter as a point: the `weight` family with a standard deviation of zero."""
        return replace(self, noise="weight", spread_offset=0.0, noise_scale=1.0)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest; without those of no temperature and of no head, as it was before there were any."""
        values = {**asdict(self), "modules": list(self.modules)}
        for name, none in (
            ("temperature", 1), ("temperature_exponent", 0), ("choice_temperature", None), ("head_weight", 0),
            ("sentence_encoder", None),
        ):  # fmt: skip
            if values[name] == none:
                del values[name]
        if not self.head_weight:
            del values["head_noise"], values["head_spread"]
        return values

    def untempered(self) -> AdapterConfig:
        """The same adapter without a temperature: all that the samples depend on."""
        return replace(self, temperature=1.0, temperature_exponent=0.0, choice_temperature=None)

    def after(self, examples: int, *, multiple_choice: bool = False) -> AdapterConfig:
        """That of a task posterior which has seen so many examples of its kind: its temperature is one number."""
        own = self.choice_temperature if multiple_choice else None
        temperature = temperature_after(examples, own or self.temperature, self.temperature_exponent)
        return replace(self.untempered(), temperature=temperature)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(**{**values, "modules": tuple(values["modules"])})
