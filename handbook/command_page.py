"""The page of the command line, from typer's commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from typer.main import get_command

from handbook.markdown import code, page, paragraph, table, type_words
from service.cli.main import app
from service.settings import Settings

# A parser of typer has no public type.
Command = Any


def command_page() -> str:
    """Return the page: each command with its arguments, options and defaults."""
    blocks = [_block(name, command) for name, command in _commands("abmll", get_command(app))]
    return page(
        "Commands",
        "the commands themselves",
        paragraph(
            "Options that are settings have their meaning and their default on the page of "
            "[the settings](settings.md). `abmll COMMAND --help` shows the same."
        ),
        *blocks,
    )


def _commands(name: str, command: Command) -> Iterator[tuple[str, Command]]:
    inner: Mapping[str, Command] = getattr(command, "commands", {})
    if not inner:
        yield name, command
    for own, sub in sorted(inner.items()):
        yield from _commands(f"{name} {own}", sub)


def _block(name: str, command: Command) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    settings = [p for p in options if p.name in Settings.model_fields and "ABMLL_" in str(p.help)]
    own = [p for p in options if p not in settings]
    usage = " ".join([name, *(str(p.metavar or p.name.upper()) for p in arguments)])
    parts = [f"## {name}", _text(command.help), code(usage)]
    rows = [_row(p) for p in (*arguments, *own)]
    if rows:
        parts.append(table(("argument or option", "type", "default", "meaning"), rows))
    if settings:
        all_of_them = len(settings) == len(Settings.model_fields)
        names = "all" if all_of_them else ", ".join(code(p.opts[0]) for p in settings)
        parts.append(paragraph(f"Settings: {names}."))
    return "\n\n".join(parts)


def _text(text: str | None) -> str:
    return "\n\n".join(paragraph(block) for block in (text or "").split("\n\n"))


def _row(param: Command) -> tuple[str, ...]:
    is_argument = param.param_type_name == "argument"
    names = [param.metavar or param.name.upper()] if is_argument else [*param.opts, *param.secondary_opts]
    kind = type_words(param.type_descriptor.annotation)
    bounds = [f"at least {param.min:g}"] if param.min is not None else []
    bounds += [f"at most {param.max:g}"] if param.max is not None else []
    return ", ".join(map(code, names)), ", ".join([kind, *bounds]), _default(param), str(param.help or "")


def _default(param: Command) -> str:
    if param.required:
        return "required"
    if param.default is None or param.default == ():
        return ""
    value = param.default
    return code(str(value).lower() if isinstance(value, bool) else value)
