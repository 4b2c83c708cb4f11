"""Model cards: Markdown after the front matter that model hubs read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

_INTRODUCTION = """\
A global LoRA posterior, meta-trained by Amortized Bayesian Meta-Learning for LoRA (ABMLL): the prior from
which a few labelled examples of a new task are adapted to a task posterior. It only works on the base model
named here, at this revision and in this quantisation.
"""
_IMPORTED = """\
A global LoRA posterior whose mean is a LoRA adapter that was trained elsewhere: a starting point from which a few
labelled examples of a new task are adapted to a task posterior. Its spread is not calibrated for this mean.
"""


def model_card(manifest: Mapping[str, Any]) -> str:
    """Return the card of a manifest in its JSON form."""
    base = manifest["base"]
    front = {
        "base_model": base["id"],
        "library_name": "abmll-serve",
        "tags": ["abmll", "lora", "meta-learning"],
    }
    sections = {
        "Base model": base,
        "Adapter": manifest["config"],
        "Adaptation it is meant for": manifest["adapt"],
        "Prompt template": manifest["template"],
        "Metrics": manifest["metrics"],
        "Training": manifest["training"],
    }
    digest = f"SHA-256 of configuration, sites and values: `{manifest['digest']}`"
    introduction = _IMPORTED if "imported_from" in manifest["training"] else _INTRODUCTION
    return card(front, manifest["id"], f"{introduction}\n{digest}", sections)


def card(front: Mapping[str, Any], title: str, introduction: str, sections: Mapping[str, Any]) -> str:
    """Return front matter, title, introduction, and each section as a list."""
    lines = ["---", yaml.safe_dump(dict(front), sort_keys=False).strip(), "---", "", f"# {title}", ""]
    lines.append(introduction)
    for heading, values in sections.items():
        lines += ["", f"## {heading}", "", *(list(_bullets(values)) or ["Nothing recorded."])]
    return "\n".join(lines) + "\n"


def _bullets(values: Any, indent: str = "") -> Iterator[str]:
    """Yield the lines of a Markdown list: a mapping by name, a list with one item a line."""
    if not isinstance(values, Mapping):
        yield from (f"{indent}- {_inline(item)}" for item in values)
        return
    for name, item in values.items():
        if _is_nested(item):
            yield f"{indent}- **{name}**"
            yield from _bullets(item, indent + "  ")
        else:
            yield f"{indent}- **{name}**: {_inline(item)}"


def _is_nested(item: Any) -> bool:
    if isinstance(item, list | tuple):
        return any(isinstance(element, Mapping) for element in item)
    return isinstance(item, Mapping)


def _inline(item: Any) -> str:
    if isinstance(item, Mapping):
        return "; ".join(f"{name}: {_inline(value)}" for name, value in item.items())
    if isinstance(item, list | tuple):
        return ", ".join(map(_inline, item))
    if isinstance(item, float):
        return f"{item:.6g}"
    text = str(item)
    return text if text == text.strip() != "" else f"`{text!r}`"  # white space that matters
