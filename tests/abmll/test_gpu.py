"""Answers on a GPU are those on the CPU, up to the order of summation."""

from pathlib import Path

import pytest
import torch

from abmll.adaptation.settings import AdaptSettings
from abmll.meta.settings import MetaSettings
from abmll.meta.train import meta_train
from abmll.model import FewShotModel
from abmll.text.tasks import Example, Query, Task
from tests.tiny import make_config, tiny_model, tiny_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("family", "offset"), [("weight", 0.02), ("output", -6.0)])
def test_adapting_and_predicting_agree_with_the_cpu(
    family: str, offset: float, support: list[Example]
) -> None:
    answers = []
    for device in ("cpu", "cuda"):
        config = make_config(rank=4, alpha=8.0, first_layer=1, family=family, offset=offset)  # type: ignore[arg-type]
        model = FewShotModel(tiny_model().to(device), tiny_tokenizer(), config)
        adapted = model.adapt(support, AdaptSettings(steps=3, learning_rate=0.01, batch_size=3), seed=1)
        queries = [Query(example.input, example.options) for example in support]
        answers.append((adapted, model.predict(adapted.posterior, queries, samples=5, seed=2)))
    (cpu, on_cpu), (gpu, on_gpu) = answers
    assert gpu.losses == pytest.approx(cpu.losses, rel=1e-2)
    assert not gpu.posterior.values.is_cuda
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert one.predictive.probabilities == pytest.approx(other.predictive.probabilities, abs=0.02)


def test_meta_training_agrees_with_the_cpu(support: list[Example], tmp_path: Path) -> None:
    inner = AdaptSettings(steps=2, learning_rate=0.01, batch_size=3, beta=1e-6)
    settings = MetaSettings(visits=3, tasks_per_visit=2, inner=inner)
    tasks = [Task("first", tuple(support), ()), Task("second", tuple(reversed(support)), ())]
    losses = []
    for device in ("cpu", "cuda"):
        model = FewShotModel(
            tiny_model().to(device), tiny_tokenizer(), make_config(rank=4, alpha=8.0, first_layer=1)
        )
        losses.append([m["losses"] for m in meta_train(model, tasks, settings, tmp_path / device)])
    for cpu, gpu in zip(*losses, strict=True):
        assert gpu == pytest.approx(cpu, rel=1e-2)
