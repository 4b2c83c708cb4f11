"""The configuration of a meta-training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from abmll.adaptation.run import TOKENS_PER_BACKWARD
from abmll.adaptation.settings import AdaptSettings
from abmll.meta.settings import MetaSettings
from abmll.posterior.config import PosteriorConfig
from abmll.text.prompting import RECOMMENDED_TEMPLATE, PromptTemplate
from lab.configuration import read_configuration
from model_store.pretrained.catalogue import Dtype, Quantisation


@dataclass(frozen=True)
class DataSettings:
    """Say which tasks of the collection at `folder` are trained on, less those in `leave_out`.

    They are `tasks`, or the training side of `split`, or all. `instructions` is a file of what they
    ask (`lab/instructions.py`), where visits show that. A relative `folder` is found from the
    working directory, and so is a relative file.
    """

    folder: Path
    split: str | None = None
    tasks: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    instructions: Path | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that determines a run.

    `posterior` is the configuration of the finished posterior. Its noise scale, its temperature and
    its similarity take no part in training. `serve` are the settings to adapt it with, and
    `serve_template` is the template to prompt it with, where that is not the one of training.

    `device`, `dtype`, `keep_dequantised` (see `load_base`), `threads` and `tokens_per_pass` fit the
    machine that trains. `tokens_per_pass` bounds the tokens of one backward pass.
    """

    id: str
    data: DataSettings
    base: str = "smollm2-135m-instruct"
    quantisation: Quantisation | None = None
    posterior: PosteriorConfig = field(default_factory=PosteriorConfig)
    template: PromptTemplate = RECOMMENDED_TEMPLATE
    meta: MetaSettings = field(default_factory=MetaSettings)
    serve: AdaptSettings = field(default_factory=AdaptSettings)
    serve_template: PromptTemplate | None = None
    device: str = "cpu"
    dtype: Dtype | None = None
    keep_dequantised: bool | None = None
    tokens_per_pass: int = TOKENS_PER_BACKWARD
    threads: int | None = None

    @classmethod
    def read(cls, path: Path) -> TrainingConfig:
        """Read a YAML file. Raises `AbmllError` as `read_configuration`."""
        return read_configuration(cls, path)
