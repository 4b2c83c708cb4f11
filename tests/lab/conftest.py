"""Fixtures of the packages that the laboratory imports, and its commands."""

from collections.abc import Callable

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from lab.commands.evaluate import evaluate
from lab.commands.meta_train import meta_train
from tests.abmll.conftest import _one_thread, make_model, support
from tests.model_store.conftest import checkpoint, prior, processes

__all__ = ["_one_thread", "checkpoint", "make_model", "prior", "processes", "support"]

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Return a function that runs a command as it is typed, without `abmll`."""
    app = typer.Typer()
    app.command("evaluate")(evaluate)
    app.command("meta-train")(meta_train)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
