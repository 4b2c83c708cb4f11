"""The configuration of a study: methods, tasks, and how they are compared."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from abmll.adaptation.settings import AdaptSettings
from abmll.errors import AbmllError
from abmll.posterior.config import PosteriorConfig
from abmll.text.prompting import RECOMMENDED_TEMPLATE, PromptTemplate
from lab.configuration import read_configuration
from lab.evaluation.methods.adapted import Adapted
from lab.evaluation.methods.averaged import Dropout, Ensemble
from lab.evaluation.methods.channel import Channel
from lab.evaluation.methods.contextual import ContextualCalibration
from lab.evaluation.methods.embeddings import Embeddings
from lab.evaluation.methods.in_context import InContext
from lab.evaluation.methods.prior import Prior
from lab.evaluation.methods.tfb import IsotropicNoise
from lab.evaluation.protocol import SEEDS
from model_store.pretrained.catalogue import Dtype, Quantisation

AnyMethod = Annotated[
    Prior
    | Adapted
    | InContext
    | Channel
    | ContextualCalibration
    | Ensemble
    | Dropout
    | IsotropicNoise
    | Embeddings,
    Field(discriminator="kind"),
]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")


@dataclass(frozen=True)
class Entry:
    """A method under a name, and the theta that it starts from.

    `posterior` is an id or a folder; without one theta is untrained (B = 0). `noise` False takes
    the spread from theta, which leaves a point. `splits` limits the entry to some of the splits,
    since a posterior is trained for one; empty means all.
    """

    name: str
    method: AnyMethod
    posterior: str | None = None
    noise: bool = True
    splits: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationData:
    """Which tasks of the collection at `folder` are tested on.

    They are the `side` of `splits`, less `leave_out`, and the tasks named in `tasks`. Temperatures
    are fitted on the `validation` tasks, which serve nothing else. With `instructions`, a file of
    what tasks ask, prompts show the instruction in its `wording`, and with `described` what options
    mean. A relative `folder` or file is found from the working directory.
    """

    folder: Path
    splits: tuple[str, ...] = ()
    side: str = "test"
    tasks: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    instructions: Path | None = None
    wording: int = 0
    described: bool = False


@dataclass(frozen=True)
class EvaluationConfig:
    """Everything that determines the numbers.

    `posterior`, `template` and `serve` are those of an untrained theta; a posterior brings its own.
    `temperature` names methods that are reported a second time as `NAME+T`, at a temperature fitted
    on the validation tasks. Of each task `items` test items are asked, and `foreign_items` of
    another task. `resamples` are those of every bootstrap. Methods are compared with the method
    `baseline`.

    `device`, `dtype`, `keep_dequantised` (see `load_base`) and `threads` fit the machine.
    """

    id: str
    data: EvaluationData
    methods: tuple[Entry, ...]
    baseline: str
    base: str = "smollm2-135m-instruct"
    quantisation: Quantisation | None = None
    device: str = "cpu"
    dtype: Dtype | None = None
    keep_dequantised: bool | None = None
    posterior: PosteriorConfig = field(default_factory=PosteriorConfig)
    template: PromptTemplate = RECOMMENDED_TEMPLATE
    serve: AdaptSettings = field(default_factory=AdaptSettings)
    temperature: tuple[str, ...] = ()
    shots: tuple[int | str, ...] = (16,)
    seeds: tuple[int, ...] = SEEDS
    items: int = 100
    foreign_items: int = 50
    resamples: int = 1000
    threads: int | None = 1

    @classmethod
    def read(cls, path: Path) -> EvaluationConfig:
        """Read a YAML file.

        Raises `AbmllError` as `read_configuration`, and for a method's name that is used twice, is
        unknown, or would not do as a folder name.
        """
        config = read_configuration(cls, path)
        names = [entry.name for entry in config.methods]
        for name in names:
            if not _NAME.fullmatch(name) or names.count(name) > 1:
                raise AbmllError(
                    f"{path.name}: the method name {name!r} is used twice, or would not do as a folder name"
                )
        unknown = {config.baseline, *config.temperature} - set(names)
        if unknown:
            raise AbmllError(f"{path.name}: no methods of the names {', '.join(sorted(unknown))}")
        return config
