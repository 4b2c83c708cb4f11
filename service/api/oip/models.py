"""What the protocol calls a model: an adapter, or the base model; with its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.api.oip import wire
from service.engine.admission import OptionRule

if TYPE_CHECKING:
    from model_store.adapters.manifest import AdapterManifest

VERSION = "1"
"""The only version of the base model and of an adapter, whose id names its content."""

ANY_LENGTH = -1
OUTPUTS_OF_OPTIONS = ("probabilities", "options")
"""Outputs that free text does not have."""


@dataclass(frozen=True)
class Model:
    """An adapter, by its id or by a name of it; or without a manifest the base model.

    The base model adapts to the support of each request. `version` is that of a name.
    """

    name: str
    manifest: AdapterManifest | None = None
    version: str = VERSION

    @property
    def options(self) -> OptionRule | None:
        """Options of the adapter. None for the base model, whose options come with the request."""
        return OptionRule.of(self.manifest.support.examples) if self.manifest else None


def metadata(model: Model) -> wire.ModelMetadata:
    """Describe the tensors of a model. An adapter for free text has no outputs of options."""
    rule = model.options
    classes = len(rule.shared) or ANY_LENGTH if rule else ANY_LENGTH
    return wire.ModelMetadata(
        name=model.name,
        versions=[model.version],
        inputs=[wire.TensorMetadata(name="text", datatype="BYTES", shape=[ANY_LENGTH])],
        outputs=[
            wire.TensorMetadata(name=name, datatype=datatype, shape=shape)
            for name, (datatype, shape) in output_tensors(ANY_LENGTH, classes).items()
            if rule is None or rule.needed or name not in OUTPUTS_OF_OPTIONS
        ],
    )


def output_tensors(texts: int, classes: int) -> dict[str, tuple[wire.Datatype, list[int]]]:
    """Return the datatype and shape of each output, by name, for this number of texts and options."""
    return {
        "answer": ("BYTES", [texts]),
        "confidence": ("FP64", [texts]),
        "decision": ("BYTES", [texts]),
        "probabilities": ("FP64", [texts, classes]),
        "options": ("BYTES", [classes]),
        "mutual_information": ("FP64", [texts]),
    }
