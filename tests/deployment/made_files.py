"""The files that are made from others: the page of the metrics, and the manifest without Helm.

`python -m tests.deployment.made_files` writes both.
"""

from __future__ import annotations

import re

from handbook.lines import wrap
from tests.deployment.tools import DOCKER, ROOT, exported, template

METRICS_PAGE = ROOT / "docs/metrics.md"
MANIFEST = DOCKER / "kubernetes.yaml"


def metrics_page() -> str:
    """Return the page that describes each metric of `service/metrics.py`."""
    rows = [
        f"| `{metric.name}{'_total' if metric.kind == 'counter' else ''}` | {metric.kind} | "
        f"{', '.join(f'`{label}`' for label in metric.labels)} | {metric.meaning} |"
        for metric in exported()
    ]
    bounds = [
        f"- `{metric.name}`: {', '.join(f'{bound:g}' for bound in metric.bounds)}"
        for metric in exported()
        if metric.bounds
    ]
    page = "\n".join(
        [
            "# Metrics",
            "",
            "What `GET /metrics` shows, in the text format of Prometheus. This page is made from `service/metrics.py` by",
            "`python -m tests.deployment.made_files`. [Deployment](deployment.md) has a dashboard and alerts for them.",
            "",
            "| metric | type | labels | meaning |",
            "|---|---|---|---|",
            *rows,
            "",
            "A histogram is three series: `_bucket` (with the label `le`), `_sum` and `_count`. A series whose",
            "labels are known before they come is there from the start, at 0; another appears with its first",
            "value. Counters begin anew when the server starts. `_created` is when a counter or a histogram was",
            "made. `process_*` are the memory, the processor time, the start and the open files of the server's",
            "process. Four series `vllm:*` are for [gateways](scaling.md#gateways-that-read-metrics).",
            "",
            "The upper bounds of the histograms' buckets:",
            "",
            *bounds,
            "",
        ]
    )
    return wrap(page)


def manifest() -> str:
    """Return the chart's resources with its default values, as one file for `kubectl apply`."""
    done = template()
    assert done.returncode == 0, done.stderr
    resources = re.sub(r"^# Source: .*\n", "", done.stdout, flags=re.MULTILINE)
    return (
        "# One replica with its own disk, for clusters without Helm:\n#\n"
        "#   kubectl apply -f docker/kubernetes.yaml\n#\n"
        "# This file is what docker/chart makes of its default values; change it there, and run\n"
        "# `python -m tests.deployment.made_files`.\n"
        f"{resources.rstrip()}\n"
    )


if __name__ == "__main__":
    METRICS_PAGE.write_text(metrics_page(), "utf-8")
    MANIFEST.write_text(manifest(), "utf-8")
