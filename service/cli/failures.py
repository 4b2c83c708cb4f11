"""Errors of the commands: one line on standard error for each error that is expected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from abmll.errors import AbmllError
from model_store.errors import StoreError
from service.cli.output import err, shown
from service.errors import ServiceError


@contextmanager
def expected_errors_in_one_line() -> Iterator[None]:
    """Print an expected error as one line and exit with status 1.

    Every other error keeps its traceback.
    """
    try:
        yield
    except (AbmllError, ServiceError, StoreError) as error:
        err.print(f"[red]error:[/] {shown(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
