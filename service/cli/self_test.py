"""A small task with known answers: whether the model of this machine answers as it should."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from abmll.adaptation.settings import Effort
from abmll.prediction.settings import PredictSettings
from abmll.text.tasks import Example, Query
from service.cli.local_engine import with_engine
from service.engine.requests import AdaptOverrides, AdaptRequest, PredictRequest
from service.schemas import demo
from service.settings import Settings

if TYPE_CHECKING:
    from service.engine.answers import Answered

EXAMPLES = 8
EFFORT: Effort = "fast"
TOLERANCE = 0.03
"""Most difference of a probability. Between bf16 and float32, 0.003 was measured."""
KNOWN: dict[tuple[str, str], tuple[tuple[str, float], ...]] = {
    ("smollm2-135m-instruct (int8)", "smollm2-135m-all-tasks-v6"): (
        ("billing", 0.492),
        ("delivery", 0.912),
        ("technical problem", 0.869),
        ("account access", 0.825),
        ("billing", 0.919),
        ("billing", 0.382),
    ),
}
"""The answers to `demo.INPUTS` with their probabilities, by base model with quantisation, and
posterior.
"""


def run_self_test(settings: Settings) -> tuple[str, bool]:
    """Return what the model answered, in words, and whether that is what it should.

    A model without known answers passes if it answers. Nothing is stored. Raises what the engine
    raises.
    """
    support = tuple(Example(text, label, tuple(demo.OPTIONS)) for text, label in demo.SUPPORT[:EXAMPLES])
    request = PredictRequest(
        AdaptRequest(support, AdaptOverrides(EFFORT)),
        tuple(Query(text, tuple(demo.OPTIONS)) for text in demo.INPUTS),
        PredictSettings(samples=0),
    )
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        own = settings.model_copy(update={"data_dir": Path(folder), "store_url": None})
        answered = with_engine(own, lambda engine: engine.predict(request))
    return judged(answered, time.monotonic() - began)


def judged(answered: Answered, seconds: float) -> tuple[str, bool]:
    """Return whether the answers are the known ones, in words and as a value."""
    manifest = answered.adapter.manifest
    model = f"{manifest.base.id} ({manifest.base.quantisation})"
    known = KNOWN.get((model, manifest.posterior_id))
    if known is None:
        return f"{model} answers, in {seconds:.1f} s; its right answers are not known", True
    found = [row.prediction.predictive for row in answered.predictions]
    own = [
        dict(zip(predictive.options, predictive.probabilities, strict=True)).get(answer, 0.0)
        for predictive, (answer, _) in zip(found, known, strict=True)
    ]
    worst = max(abs(one - right) for one, (_, right) in zip(own, known, strict=True))
    if worst > TOLERANCE:
        shown = ", ".join(
            f"{answer} {one:.3f} ({right:.3f})" for one, (answer, right) in zip(own, known, strict=True)
        )
        return f"{model} gives {shown}, with the right probabilities behind", False
    return f"{len(known)} known answers; probabilities differ by {worst:.3f}, in {seconds:.1f} s", True
