"""The page of the Python client, from its public names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import abmll_client
from abmll_client import plot, sklearn
from handbook.markdown import documentation, page, paragraph

_CLASSIFIERS = (sklearn.FewShotClassifier, sklearn.AbmllMultiOutputClassifier)
_PICTURES = (plot.risk_coverage, plot.reliability, plot.label_board)
_ERRORS = "Errors"


def python_page() -> str:
    """Return the page: every public class and function with its signature and docstring."""
    public = [getattr(abmll_client, name) for name in abmll_client.__all__]
    errors = [thing for thing in public if inspect.isclass(thing) and issubclass(thing, Exception)]
    others = [thing for thing in public if thing not in errors]
    return page(
        "Python client",
        "the docstrings of `abmll_client`",
        paragraph(
            "[The client](../client.md) explains it with examples. `AsyncClient` has the methods of "
            "`Client` as coroutines, and its docstrings are there."
        ),
        *(block for thing in others for block in _blocks(thing)),
        *(block for thing in _CLASSIFIERS for block in _blocks(thing, "abmll_client.sklearn.")),
        *(block for thing in _PICTURES for block in _blocks(thing, "abmll_client.plot.")),
        f"## {_ERRORS}",
        *(f"`{error.__name__}`\n\n{documentation(error)}" for error in errors),
    )


def _blocks(thing: object, module: str = "") -> Iterator[str]:
    name = str(getattr(thing, "__name__", thing))
    yield f"## {module}{name}"
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return
    yield _signature(name, thing)
    yield documentation(thing)
    if not inspect.isclass(thing) or name.startswith("Async"):
        return
    for member, found in vars(thing).items():
        if not member.startswith("_") and inspect.isfunction(found):
            yield f"### {name}.{member}"
            yield _signature(member, found)
            yield documentation(found)


def _signature(name: str, thing: object) -> str:
    """Return the signature in a block, without types that are spelled over many lines."""
    text = f"{name}{inspect.signature(thing)}"  # type: ignore[arg-type]
    text = re.sub(r"\b(?:collections\.abc|typing|abmll_client(?:\.\w+)*|httpx|pathlib)\.", "", text)
    text = text.replace("'", "").replace("(self, ", "(").replace("(self)", "()")
    return f"```text\n{re.sub(r' at 0x[0-9a-f]+', '', text)}\n```"
