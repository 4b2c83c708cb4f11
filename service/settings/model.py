"""Settings of the model and its device."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator

from model_store.pretrained.catalogue import DEFAULT_BASE
from service.settings.values import split

UNTRAINED = "untrained"


class ModelSettings(BaseModel):
    """Which model answers, and on which device."""

    @property
    def aliases(self) -> list[str]:
        """The names of `model_aliases`, one by one."""
        return split(self.model_aliases)

    @property
    def other_posteriors(self) -> list[str]:
        """The posteriors of `also_posteriors`, one by one."""
        return split(self.also_posteriors)

    model: str = Field(default=DEFAULT_BASE, description="Name of the base model in the catalogue.")
    model_aliases: str | None = Field(
        default=None,
        description="Other names of the base model, such as the one that a client always sends; "
        "several are separated by commas.",
    )
    posterior: str | None = Field(
        default=None,
        description="Id or folder of the global posterior, or `untrained`; by default the "
        "posterior in the package for this base model.",
    )
    also_posteriors: str | None = Field(
        default=None,
        description="Ids or folders of other global posteriors of the same base, separated by commas: adapters "
        "that were made with them are answered too. New adapters are made with `posterior`.",
    )
    quantisation: Literal["nf4", "int8", "none"] | None = Field(
        default=None, description="Quantisation of the base model; by default that of its catalogue entry."
    )
    dtype: Literal["bfloat16", "float32"] | None = Field(
        default=None,
        description="Number format of the computation; by default bfloat16 where the device multiplies it, else "
        "float32. In bfloat16 on processors with AMX, and on GPUs, an answer depends a little on the work beside "
        "it; in float32 it does not.",
    )
    readout_scale: Annotated[float, Field(gt=0, le=1000)] | Literal["off"] | None = Field(
        default=None,
        description="Scale of the noise where samples differ in the readout alone, the last linear layer: many "
        "samples then cost little more than the mean. `off` samples every adapted layer, which costs about as "
        "much as a pass a sample. By default samples differ as the posterior says.",
    )
    nli_model: str | None = Field(
        default=None,
        description="Folder or hub id of an entailment classifier, which decides whether free-text "
        "answers mean the same; by default answers mean the same if they have the same "
        "words.",
    )
    device: str = Field(
        default="cpu", description="Device that runs the model: `cpu`, `cuda`, or one GPU such as `cuda:0`."
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="CPU threads of each worker; by default torch's choice for one worker, and an equal part of "
        "the cores for several.",
    )
    compile: bool = Field(
        default=False,
        description="Compile the layers below the adapted ones with `torch.compile`. Needs a "
        "compiler, and makes the start slower.",
    )

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        name = device.strip().lower()
        if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
            raise ValueError(
                f"there is no device {device!r}: name `cpu`, `cuda`, or one GPU such as `cuda:0`"
            )
        return name
