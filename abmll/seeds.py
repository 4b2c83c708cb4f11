"""Seeds by name: every random number here depends on what it is for, and on nothing that ran before."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on all parts and on nothing else."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class SampleSeed:
    """The randomness of one sample: a seed, and for the second of an antithetic pair `flip` -1."""

    seed: int
    flip: int = 1


def sample_seeds(seed: int, start: int, stop: int, *, paired: bool) -> list[SampleSeed]:
    """Return the seeds of samples `start` to `stop` of the sequence that `seed` names.

    Sample n depends on `seed` and n alone. `paired` samples 2k and 2k + 1 are antithetic: they share a seed
    and differ in their sign, so that odd-order errors of their mean cancel.
    """
    if not paired:
        return [SampleSeed(derive_seed(seed, "sample", n)) for n in range(start, stop)]
    return [SampleSeed(derive_seed(seed, "sample", n // 2), 1 - 2 * (n % 2)) for n in range(start, stop)]
