"""The manifest of an adapter: what it was made from, how, and on which base."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from abmll.assurance.held_out import HeldOutSummary
from abmll.decoder.layout import Site
from abmll.posterior.config import PosteriorConfig
from abmll.text.questions import TypedQuestion, questions_of
from abmll.text.tasks import Example
from model_store.errors import UnsupportedFormatError
from model_store.pretrained.identity import BaseIdentity
from model_store.tensors import sites_from_json, sites_to_json

FORMAT_VERSION = 1
WITHOUT_VALUES = 2
"""The format of an adapter whose values are those of its global posterior, and not in its file.

A server that knows only the first format leaves such an adapter alone.
"""
ADAPTER_ID = re.compile(r"adp_[0-9a-f]{8,64}")


@dataclass(frozen=True)
class SupportRecord:
    """The examples that an adapter was made from.

    `tokens` is their number of tokens. `options` are those that all examples share, else empty.
    `digest` names the texts in their order. `questions` are the adapter's own, if it was made from
    cases: the examples answer some of them. Without `texts`, the examples have digests in place of
    their inputs, and of their outputs where these are free text (`without_texts`).
    """

    examples: tuple[Example, ...]
    tokens: int
    options: tuple[str, ...]
    digest: str
    questions: tuple[TypedQuestion, ...] = ()
    texts: bool = True

    def without_texts(self) -> SupportRecord:
        """Return the record with the SHA-256 of each text in place of it; options stay."""
        examples = tuple(
            replace(
                example,
                input=_text_digest(example.input),
                output=example.output if example.options else _text_digest(example.output),
            )
            for example in self.examples
        )
        return replace(self, examples=examples, texts=False)

    def has_input(self, text: str) -> bool:
        """Return whether an example has this input."""
        wanted = text if self.texts else _text_digest(text)
        return any(example.input == wanted for example in self.examples)

    @property
    def n(self) -> int:
        """Return the number of examples."""
        return len(self.examples)

    @property
    def asked(self) -> tuple[TypedQuestion, ...]:
        """Return the adapter's own questions, or else those of its examples with instructions."""
        return self.questions or questions_of(self.examples)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a manifest."""
        asked = {"questions": [typed.to_json() for typed in self.questions]} if self.questions else {}
        return {
            "n": self.n,
            "examples": [example.to_json() for example in self.examples],
            "tokens": self.tokens,
            "options": list(self.options),
            "digest": self.digest,
            **asked,
            **({} if self.texts else {"texts": False}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Invert `to_json`."""
        examples = tuple(map(Example.from_json, values["examples"]))
        questions = tuple(map(TypedQuestion.from_json, values.get("questions", ())))
        return cls(
            examples,
            values["tokens"],
            tuple(values["options"]),
            values["digest"],
            questions,
            values.get("texts", True),
        )


def _text_digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


@dataclass(frozen=True)
class AdapterManifest:
    """What an adapter is, and everything that determined it.

    `created` is a UTC time in ISO 8601. `settings` are plain values: those of `AdaptSettings`, and
    what else determines the result. `losses` are in nats per example, one for each step. `held_out`
    is what chose the temperature in `config`, where that is the adapter's own.
    """

    id: str
    created: str
    base: BaseIdentity
    posterior_id: str
    posterior_digest: str
    settings: Mapping[str, Any]
    seed: int
    support: SupportRecord
    losses: tuple[float, ...]
    warnings: tuple[str, ...]
    config: PosteriorConfig
    sites: tuple[Site, ...]
    held_out: HeldOutSummary | None = None
    format_version: int = FORMAT_VERSION

    @property
    def without_values(self) -> bool:
        """Whether the values are those of the global posterior, and not stored."""
        return self.format_version == WITHOUT_VALUES

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `manifest.json`."""
        return {
            "format_version": self.format_version,
            "id": self.id,
            "created": self.created,
            "base": self.base.to_json(),
            "posterior_id": self.posterior_id,
            "posterior_digest": self.posterior_digest,
            "settings": dict(self.settings),
            "seed": self.seed,
            "support": self.support.to_json(),
            "losses": list(self.losses),
            "warnings": list(self.warnings),
            "config": self.config.to_json(),
            "sites": sites_to_json(self.sites),
            **({"held_out": self.held_out.to_json()} if self.held_out else {}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Invert `to_json`. Raises `UnsupportedFormatError` for the format of another version."""
        if values["format_version"] not in (FORMAT_VERSION, WITHOUT_VALUES):
            found = values["format_version"]
            raise UnsupportedFormatError(
                f"adapter format {found!r} is not one of those read here, {FORMAT_VERSION} and {WITHOUT_VALUES}"
            )
        return cls(
            **{
                **values,
                "base": BaseIdentity.from_json(values["base"]),
                "support": SupportRecord.from_json(values["support"]),
                "losses": tuple(values["losses"]),
                "warnings": tuple(values["warnings"]),
                "config": PosteriorConfig.from_json(values["config"]),
                "sites": sites_from_json(values["sites"]),
                "held_out": HeldOutSummary.from_json(values["held_out"]) if "held_out" in values else None,
            }
        )
