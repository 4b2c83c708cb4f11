"""Show what went wrong in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from abmll.errors import AbmllError
from model_store.errors import StoreError
from model_store.terminal import shown

# What the extra `lab` of pyproject.toml brings, and the extra that brings another library.
LIBRARIES = ("matplotlib", "sklearn")
_EXTRAS = {**dict.fromkeys(LIBRARIES, "lab"), "datasets": "tasks"}

_err = Console(stderr=True, emoji=False)


@contextmanager
def failures_shown() -> Iterator[None]:
    """Print one line on standard error and exit with 2 for a failure that is expected.

    These are the errors of the method and of the stores, and a library of an extra that is not
    installed. Anything else keeps its traceback.
    """
    try:
        yield
    except (AbmllError, StoreError) as error:
        message = str(error)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(str(error.name).partition(".")[0])
        if extra is None:
            raise
        message = f"{error.name} is not installed: pip install '.[{extra}]'"
    else:
        return
    _err.print(f"[red]error:[/] {shown(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(2)
