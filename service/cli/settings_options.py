"""Command-line options made from the settings model, so that each setting is described once.

pydantic-settings reads the command line only through a parser with argparse's methods, and these
commands are typer's: its parser and `--help` would not know the options.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from typer.core import TyperCommand

from service.settings import Settings
from service.settings.loading import CONFIG_VARIABLE, load_settings
from service.settings.values import ENV_PREFIX, SettingsError, is_empty


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add one option to a command for each setting in `names`; without `names`, for every setting.

    One more, `--config`, names a file with any of them. The command's first parameter must be
    `settings`. It receives the settings from the options, the environment, the file and the
    defaults. A setting that does not hold raises `typer.BadParameter`, which exits with status 2.
    """
    fields = {name: Settings.model_fields[name] for name in names or Settings.model_fields}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        options = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    _typed(field.annotation),
                    typer.Option(
                        help=f"{field.description} ({ENV_PREFIX}{name.upper()})",
                        show_default=_default(field.default),
                        rich_help_panel=_panel(name),
                    ),
                ],
            )
            for name, field in fields.items()
        ]

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in fields}
            try:
                settings = load_settings(arguments.pop("config"), **given)
            except SettingsError as error:
                raise typer.BadParameter(str(error)) from error
            command(settings, **arguments)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + options + [_CONFIG]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


_CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None,
        typer.Option(
            help=f"File in TOML with settings, a line each: `workers = 2`. Options and the environment win "
            f"over it. ({CONFIG_VARIABLE})",
        ),
    ],
)


class SettingsCommand(TyperCommand):
    """A command to which the option of a setting with an empty value is as good as not given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Leave out `--host ""` and `--host=`, before an empty text becomes the current folder."""
        return super().parse_args(ctx, _without_empty_settings(args))


def _without_empty_settings(args: Sequence[str]) -> list[str]:
    names = {
        f"--{name.replace('_', '-')}"
        for name, field in Settings.model_fields.items()
        if field.annotation is not bool
    }
    left: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            return [*left, arg, *rest]
        name, equals, value = arg.partition("=")
        if name not in names:
            left.append(arg)
            continue
        given = [arg] if equals else [arg, *itertools.islice(rest, 1)]
        if not is_empty(value if equals else given[-1]):
            left += given
    return left


def _typed(annotation: Any) -> Any:
    """Return the type of a setting's option.

    A typer option has one type beside None. Where a setting has several, the option is a text,
    which pydantic reads.
    """
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not NoneType]
    several = get_origin(annotation) in (Union, UnionType) and len(kinds) > 1
    return str | None if several else annotation | None


def _default(value: Any) -> str | bool:
    """Return what `--help` shows as the default of a setting; False where its text says it."""
    if value is None or value == "":
        return False
    return str(value).lower() if isinstance(value, bool) else str(value)


def _panel(name: str) -> str:
    """Return the heading in `--help` of the group of settings that has the setting `name`."""
    (group,) = (base for base in Settings.__bases__ if name in base.__annotations__)
    return str(group.__doc__).rstrip(".")
