"""Draws of support examples from a task's pool."""

from __future__ import annotations

import random
from collections.abc import Sequence

from abmll.text.tasks import Example, one_class_only


def draw_uniformly(pool: Sequence[Example], size: int, seed: int) -> tuple[Example, ...]:
    """Draw `size` examples of `pool` without replacement, whatever their labels (as MetaICL does).

    The order is random and depends on `seed`. A draw of one class only, which no adaptation
    accepts, is repeated, unless the pool or the size allows no other.
    """
    rng = random.Random(seed)  # noqa: S311 - a reproducible draw, not a secret
    size = min(size, len(pool))
    hopeless = size < 2 or one_class_only(pool)
    while True:
        drawn = tuple(rng.sample(list(pool), size))
        if hopeless or not one_class_only(drawn):
            return drawn


def draw_support(pool: Sequence[Example], size: int, seed: int) -> tuple[Example, ...]:
    """Draw `size` examples of `pool` without replacement, with classes as equal as the pool allows.

    The order is random and depends on `seed`. Multiple choice, where options differ between
    examples, and free text are drawn uniformly.
    """
    rng = random.Random(seed)  # noqa: S311 - a reproducible draw, not a secret
    shuffled = rng.sample(list(pool), len(pool))
    if len({example.options for example in pool}) > 1 or not pool[0].options:
        return tuple(shuffled[:size])
    queues: dict[str, list[Example]] = {option: [] for option in pool[0].options}
    for example in shuffled:
        queues[example.output].append(example)
    order = [queue for queue in queues.values() if queue]
    rng.shuffle(order)
    drawn: list[Example] = []
    while len(drawn) < min(size, len(pool)):
        for queue in order:
            if queue and len(drawn) < size:
                drawn.append(queue.pop())
    rng.shuffle(drawn)
    return tuple(drawn)
