"""The noise families by name: the one place where a family is registered."""

from __future__ import annotations

from abmll.errors import PosteriorMismatchError
from abmll.posterior.config import NoiseConfig
from abmll.posterior.noise.contract import NoiseFamily
from abmll.posterior.noise.output import OutputNoise
from abmll.posterior.noise.weight import WeightNoise

FAMILIES: dict[str, NoiseFamily] = {family.name: family for family in (WeightNoise(), OutputNoise())}


def family_of(noise: NoiseConfig) -> NoiseFamily:
    """Return the family that `noise` names. Raises `PosteriorMismatchError` for an unknown name."""
    if noise.family not in FAMILIES:
        raise PosteriorMismatchError(f"no noise family {noise.family!r}: known are {', '.join(FAMILIES)}")
    return FAMILIES[noise.family]
