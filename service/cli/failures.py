"""How the commands tell what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from abmll.errors import AbmllError
from service.errors import ServiceError

err = Console(stderr=True)


@contextmanager
def errors_told() -> Iterator[None]:
    """One line on standard error and status 1 for what is expected to go wrong; anything else keeps its traceback."""
    from model_store.errors import StoreError  # noqa: PLC0415

    try:
        yield
    except (AbmllError, ServiceError, StoreError) as error:
        err.print(f"[red]error:[/] {escape(str(error))}")
        raise typer.Exit(1) from error
