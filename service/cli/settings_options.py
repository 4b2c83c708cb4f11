"""Command-line options made from the settings model, so that each setting is described once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from service.settings import ENV_PREFIX, Settings, SettingsError, load_settings


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command whose first parameter is `settings` one option for each setting in `names` (all, if none is named).

    The command is called with the settings from its options, the environment and the defaults.
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
                    field.annotation | None,  # type: ignore[operator]
                    typer.Option(help=f"{field.description} ({ENV_PREFIX}{name.upper()})"),
                ],
            )
            for name, field in fields.items()
        ]

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in fields}
            try:
                settings = load_settings(**given)
            except SettingsError as error:
                raise typer.BadParameter(str(error)) from error
            command(settings, **arguments)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + options
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate
