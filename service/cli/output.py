"""Where the commands write: answers to standard output, errors and progress to standard error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console, RenderableType

from model_store.terminal import visible

out = Console(emoji=False)
err = Console(stderr=True, emoji=False)

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def show(answer: Mapping[str, Any], table: RenderableType, as_json: bool) -> None:
    """Print `answer` on one line of JSON if `as_json`, else its `table`."""
    if as_json:
        typer.echo(visible(json.dumps(answer, ensure_ascii=False)))
    else:
        out.print(table)
