"""Measure the ticket example in English, German, Spanish and French: accuracy and NLL.

    python -m benchmarks.languages

The tickets are 160 sentences of our own in `benchmarks/languages.jsonl`: the same 40 in each
language, of which 16 are examples and 24 are asked. Labels are English, or in the language of the
tickets. So few inputs show large differences only: the page has intervals.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import binomtest

from abmll.text.tasks import Example, Query
from benchmarks import common
from benchmarks.common import Served

TICKETS = Path(__file__).with_suffix(".jsonl")
NAMES = {"en": "English", "de": "German", "es": "Spanish", "fr": "French"}


def read(language: str, labels: str) -> tuple[list[Example], list[Example]]:
    """Return the examples and the tickets to ask, with `english` labels or their `own`."""
    rows = [json.loads(line) for line in TICKETS.read_text("utf-8").splitlines()]
    rows = [row for row in rows if row["language"] == language]
    options = tuple(dict.fromkeys(row[labels] for row in rows))
    found: dict[str, list[Example]] = {"train": [], "test": []}
    for row in rows:
        found[row["split"]].append(Example(row["input"], row[labels], options))
    return found["train"], found["test"]


def measure(served: Served, train: Sequence[Example], test: Sequence[Example], samples: int) -> list[object]:
    """Return n, how many answers are right, their interval of 95 %, NLL, and tokens of a ticket."""
    adapted = served.model.adapt(train)
    found = served.model.predict(
        adapted.posterior, [Query(item.input, item.options) for item in test], samples=samples
    )
    pairs = list(zip(found, test, strict=True))
    right = sum(one.predictive.answer == item.output for one, item in pairs)
    low, high = binomtest(right, len(test)).proportion_ci(method="wilson")
    nll = statistics.fmean(
        -math.log(one.predictive.probabilities[item.options.index(item.output)]) for one, item in pairs
    )
    texts = served.model.encoder.tokens
    tokens = statistics.fmean(len(texts.behind(item.input)) for item in test)
    return [len(test), right / len(test), f"[{low:.2f}, {high:.2f}]", nll, tokens]


def main() -> None:
    """Run the benchmark."""
    parser = common.arguments(__doc__, repeats=1)
    parser.add_argument("--samples", type=int, default=16)
    options = parser.parse_args()
    served = common.load_served(options.posterior, options.threads)
    rows: list[list[object]] = []
    for language, name in NAMES.items():
        for labels in ("english", "own") if language != "en" else ("english",):
            train, test = read(language, labels)
            if options.quick:
                train, test = train[::4], test[::12]
            asked = "English" if labels == "english" else name
            rows.append([name, asked, *measure(served, train, test, options.samples)])
            print(rows[-1], flush=True)
    head = ["tickets", "labels", "n", "accuracy", "95 %", "NLL", "tokens of a ticket"]
    about = (
        f"The same tickets in each language, of four classes, in our own words: 16 examples, and "
        f"{rows[0][2]} others asked with {options.samples} samples. Posterior: `{served.manifest.id}`. "
        "Intervals are Wilson's; guessing is right for .25 of the tickets."
    )
    data = {"columns": head, "rows": rows}
    table = common.table(head, rows)
    common.write_results(
        "languages", "Tickets in four languages", [about], [table], data, options, served.dtype
    )


if __name__ == "__main__":
    main()
