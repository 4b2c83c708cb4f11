"""The page of the settings, from `service/settings`."""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin

from pydantic.fields import FieldInfo

from handbook.markdown import code, page, paragraph, table, type_words
from service.settings import Settings
from service.settings.values import ENV_PREFIX

_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
_OF_THE_MACHINE = {"data_dir": "the user's data folder"}
"""Defaults that the machine decides, in words."""


def settings_page() -> str:
    """Return the page: each setting with its variable, type, default and meaning, by group."""
    groups = [
        base for base in reversed(Settings.__bases__) if base.__module__.startswith(Settings.__module__)
    ]
    groups = [base for base in groups if set(Settings.model_fields) & set(vars(base)["__annotations__"])]
    blocks = [
        f"## {str(base.__doc__).rstrip('.')}\n\n"
        + table(
            ("option", "variable", "type", "default", "meaning"),
            [_row(name) for name in vars(base)["__annotations__"] if name in Settings.model_fields],
        )
        for base in groups
    ]
    return page(
        "Settings",
        "`service/settings`",
        paragraph(
            "The command line wins over the environment, which wins over the default. "
            "An empty value counts as not given. `abmll serve --print-config` prints what is in force."
        ),
        *blocks,
    )


def _row(name: str) -> tuple[str, ...]:
    field = Settings.model_fields[name]
    option = f"--{name.replace('_', '-')}"
    kind = ", ".join([type_words(field.annotation), *_bounds(field)])
    variable = f"{ENV_PREFIX}{name.upper()}"
    return code(option), code(variable), kind, _default(name, field.default), str(field.description)


def _bounds(field: FieldInfo) -> list[str]:
    parts = [part for part in get_args(field.annotation) if get_origin(part) is Annotated]
    of_parts = [rule for part in parts for own in part.__metadata__ for rule in own.metadata]
    found: list[str] = []
    for rule in [*field.metadata, *of_parts]:
        for bound, words in _BOUNDS.items():
            value = getattr(rule, bound, None)
            if value is not None:
                found.append(words.format(_number(value)))
    return found


def _default(name: str, value: Any) -> str:
    if name in _OF_THE_MACHINE:
        return _OF_THE_MACHINE[name]
    if isinstance(value, bool):
        return code(str(value).lower())
    return "" if value in (None, "") else code(_number(value))


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
