"""Errors of the commands: one line on standard error for each error that is expected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from abmll.errors import AbmllError, MissingColumnError
from model_store.errors import StoreError
from model_store.terminal import shown
from service.cli.output import err
from service.errors import ServiceError
from service.settings.values import SettingsError


@contextmanager
def expected_errors_in_one_line(status: int = 1) -> Iterator[None]:
    """Print an expected error as one line and exit with `status`.

    These are the errors of the method, of the stores and of the service, settings that do not hold,
    and what the system refuses about a file or an address. Every other error keeps its traceback.
    """
    try:
        yield
    except MissingColumnError as error:
        message = f"{error}. Name the right one by --{error.holds}-column"
    except (AbmllError, ServiceError, StoreError, SettingsError) as error:
        message = str(error)
    except OSError as error:
        if error.errno is None:  # not the system's: some libraries raise it for all they meet
            raise
        message = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    else:
        return
    err.print(f"[red]error:[/] {shown(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(status)
