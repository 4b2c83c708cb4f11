"""Seeds by name: a random number depends on its purpose, and on nothing that ran before."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on all parts and on nothing else."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class SampleSeed:
    """Randomness of one sample: a seed, and `flip`, which is -1 for the second of a pair."""

    seed: int
    flip: int = 1


def sample_seeds(seed: int, start: int, stop: int, *, paired: bool) -> list[SampleSeed]:
    """Return the seeds of samples `start` to `stop` of the sequence that `seed` names.

    Sample n depends on `seed` and n alone. With `paired`, samples 2k and 2k + 1 are antithetic:
    they have the same seed and opposite signs, so that odd-order errors of their mean cancel.
    """
    if not paired:
        return [SampleSeed(derive_seed(seed, "sample", n)) for n in range(start, stop)]
    return [SampleSeed(derive_seed(seed, "sample", n // 2), 1 - 2 * (n % 2)) for n in range(start, stop)]
