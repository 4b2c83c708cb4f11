"""The tools that check the files of `docker/`, and what both have in common: the metrics."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from service.metrics import Metrics

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKER = ROOT / "docker"
CHART = DOCKER / "chart"
TOOLS = ROOT / ".venv/tools"


def tool(name: str) -> str:
    """Return the path of one of the tools of `.ci/tools`, or skip the test where it is missing."""
    own = TOOLS / name
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is missing: .ci/tools fetches it")
    return found


def run_tool(name: str, *arguments: object, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of the tools of `.ci/tools`, or skip the test where it is missing."""
    return subprocess.run(
        [tool(name), *map(str, arguments)], input=given, capture_output=True, text=True, check=False
    )


def template(values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """Render the chart as a release named `abmll-serve` with these values beside its defaults."""
    return run_tool(
        "helm", "template", "abmll-serve", CHART, "--values", "-", given=yaml.safe_dump(dict(values or {}))
    )


def render(values: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Return what the chart makes of these values, by kind; the Service of the pods' names as
    `HeadlessService`. No kind comes twice.
    """
    done = template(values)
    assert done.returncode == 0, done.stderr
    made = [document for document in yaml.safe_load_all(done.stdout) if document]
    by_kind = {_kind(document): document for document in made}
    assert len(by_kind) == len(made)
    return by_kind


def _kind(document: Mapping[str, Any]) -> str:
    headless = document["spec"].get("clusterIP") == "None" if "spec" in document else False
    return f"Headless{document['kind']}" if headless else document["kind"]


@dataclass(frozen=True)
class Exported:
    """A metric as the service declares it, and the names of its series in `/metrics`."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str
    bounds: tuple[float, ...] = ()

    @property
    def series(self) -> dict[str, set[str]]:
        """The labels of each series."""
        labels = set(self.labels)
        if self.kind == "counter":
            return {f"{self.name}_total": labels}
        if self.kind == "histogram":
            return {
                f"{self.name}_bucket": labels | {"le"},
                f"{self.name}_sum": labels,
                f"{self.name}_count": labels,
            }
        return {self.name: labels}


def exported() -> list[Exported]:
    """Return the metrics of the service in the order of their declaration.

    The client library has no public way to the labels and bounds of a metric without samples.
    """
    return [
        Exported(
            metric._name,
            metric._type,
            tuple(metric._labelnames),
            metric._documentation,
            tuple(b for b in getattr(metric, "_upper_bounds", ()) if b != float("inf")),
        )
        for metric in vars(Metrics()).values()
        if isinstance(metric, MetricWrapperBase)
    ]


def lost(given: object, read: object, place: str = "") -> Iterator[str]:
    """Yield where `read` has not what `given` has. A model drops what it does not know."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            if key in read:
                yield from lost(value, read[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}"
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for i, (value, other) in enumerate(zip(given, read, strict=True)):
            yield from lost(value, other, f"{place}[{i}]")
    elif given != read:
        yield f"{place}: {given!r} became {read!r}"
