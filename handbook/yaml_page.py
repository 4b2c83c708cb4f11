"""The page of the YAML files of training runs and studies, from their records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from handbook.markdown import anchor, code, documentation, page, paragraph, table, type_words
from lab.evaluation.configuration import EvaluationConfig
from lab.training.configuration import TrainingConfig


def yaml_page() -> str:
    """Return the page: the fields of both files, and of every record inside them."""
    records = list(dict.fromkeys([*_records(TrainingConfig), *_records(EvaluationConfig)]))
    return page(
        "YAML files",
        "the records in `lab/training/configuration.py` and `lab/evaluation/configuration.py`",
        paragraph(
            "`abmll meta-train --config` reads a `TrainingConfig` ([how](../meta-training.md)), "
            "`abmll evaluate --config` an `EvaluationConfig` ([how](../evaluation.md)). "
            "A file with `like: OTHER.yaml` holds what differs from that file, whose path is relative to "
            "its own folder. Unknown fields are refused."
        ),
        *map(_block, records),
    )


def _records(record: type[Any]) -> Iterator[type[Any]]:
    """Yield a record and the records that its fields hold, each before what it holds."""
    yield record
    for annotation in _annotations(record).values():
        for part in _parts(annotation):
            if is_dataclass(part):
                yield from _records(part)  # type: ignore[arg-type]


def _annotations(record: type[Any]) -> dict[str, Any]:
    return {field.name: get_type_hints(record, include_extras=True)[field.name] for field in fields(record)}


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation):
        yield from _parts(part)


def _block(record: type[Any]) -> str:
    rows = [
        (code(field.name), _words(_annotations(record)[field.name]), _default(field))
        for field in fields(record)
    ]
    parts = [f"## {record.__name__}", documentation(record)]
    return "\n\n".join([*parts, table(("field", "type", "default"), rows)] if rows else parts)


def _words(annotation: Any) -> str:
    found = [part for part in dict.fromkeys(_parts(annotation)) if is_dataclass(part)]
    if found:
        names = [f"[{record.__name__}](#{anchor(record.__name__)})" for record in found]  # type: ignore[union-attr]
        many = "several: " if get_origin(annotation) is tuple else ""
        return many + " or ".join(names)
    return type_words(annotation)


def _default(field: Field[Any]) -> str:
    if field.default is MISSING and field.default_factory is MISSING:
        return "required"
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if value is None or value == () or is_dataclass(value):
        return ""
    if isinstance(value, tuple):
        return code(f"[{', '.join(map(str, value))}]")
    return code(f"{value:g}" if isinstance(value, float) else str(value))
