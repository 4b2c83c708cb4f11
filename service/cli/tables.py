"""Tables for people at a terminal.

Tables are made from objects of the wire, so an answer of a server prints like one of this process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

from model_store.terminal import shown
from service.cli.bars import Bar, bar_lines

MOST_BARS = 8


def prediction_table(answer: Mapping[str, Any], inputs: Sequence[str]) -> Table:
    """Make a table with a row for each input: its answer, confidence and decision."""
    timings = answer["timings"]
    table = Table(
        title=f"adapter {shown(answer['adapter_id'])} ({answer['cache']})",
        caption=(
            f"adapted in {timings['adapt_seconds']:.1f} s, predicted in {timings['predict_seconds']:.1f} s; "
            "information: mutual information, in nats; 0 where all samples agree"
        ),
    )
    for heading in ("input", "answer"):
        table.add_column(heading, overflow="fold")
    for heading in ("confidence", "runner-up", "information"):
        table.add_column(heading, justify="right")
    table.add_column("decision")
    for row in answer["predictions"]:
        top = next(o for o in row["distribution"] if o["option"] == row["answer"])
        information = row["uncertainty"]["mutual_information"]
        table.add_row(
            shown(_short(inputs[row["index"]])),
            shown(_short(row["answer"])),
            f"{row['confidence']:.2f} ± {top['std']:.2f}",
            f"{row['confidence'] - row['margin']:.2f}",
            f"{information:.3f}",
            "[green]answer[/]" if row["decision"] == "answer" else "[yellow]abstain[/]",
        )
    return table


def keys_table(answer: Mapping[str, Any]) -> Group:
    """Make a table with a row for each key, and one for the limits of each tenant."""
    keys, limits = Table(), Table()
    for heading in ("key", "tenant", "scopes", "created", "expires", "revoked", "note"):
        keys.add_column(heading, overflow="fold")
    for row in answer["keys"]:
        times = (row[name] or "" for name in ("created", "expires", "revoked"))
        keys.add_row(row["id"], row["tenant"], ", ".join(row["scopes"]), *times, shown(row["note"] or ""))
    for heading in ("tenant", "limits"):
        limits.add_column(heading, overflow="fold")
    for tenant, own in answer["limits"].items():
        limits.add_row(tenant, ", ".join(f"{name} {most:g}" for name, most in own.items()) or "none")
    return Group(keys, limits) if answer["limits"] else Group(keys)


def decision_tables(answer: Mapping[str, Any], inputs: Sequence[str], bar: Bar | None = None) -> Group:
    """Make a table for each input, with a row for each question: answer, confidence and decision.

    With `bar`, it draws the probability of each option too.
    """
    timings = answer["timings"]
    source = (
        f"adapter {answer['adapter_id']} ({answer['cache']})" if answer["adapter_id"] else answer["model"]
    )
    caption = (
        f"{shown(source)} : adapted in {timings['adapt_seconds']:.1f} s, answered in "
        f"{timings['predict_seconds']:.1f} s\nanswerable: probability that the input tells the answer; "
        "*: zero-shot, without cases"
    )
    return Group(*(_answers_table(row, inputs[row["index"]], bar) for row in answer["results"]), caption)


def _answers_table(result: Mapping[str, Any], text: str, bar: Bar | None) -> Table:
    table = Table(title=shown(_short(text, 160)), title_justify="left")
    for heading in ("question", "answer"):
        table.add_column(heading, overflow="fold", min_width=12)
    for heading in ("confidence", "answerable"):
        table.add_column(heading, justify="right")
    table.add_column("decision")
    if bar is not None:
        table.add_column("probabilities", no_wrap=True)
    for name, row in result["answers"].items():
        given = row["answer"]
        value = given if isinstance(given, str) else "yes" if given else "no"
        level = "" if row["expected_level"] is None else f" ({row['expected_level']:.1f})"
        table.add_row(
            shown(_short(name) + ("" if row["learned"] else " *")),
            shown(_short(value) + level),
            f"{row['confidence']:.2f} ± {row['standard_error']:.2f}",
            "" if row["answerable"] is None else f"{row['answerable']:.2f}",
            "[green]answer[/]" if row["decision"] == "answer" else "[yellow]abstain[/]",
            *([] if bar is None else [_bars(bar, row["probabilities"])]),
        )
    return table


def _bars(bar: Bar, probabilities: Sequence[Mapping[str, Any]]) -> str:
    """Return the bars of at most `MOST_BARS` options, the most probable ones, in their order."""
    shown_options = sorted(probabilities, key=lambda row: -row["probability"])[:MOST_BARS]
    rows = [row for row in probabilities if row in shown_options]
    names = [("yes" if v else "no") if isinstance(v := row["value"], bool) else _short(v, 20) for row in rows]
    lines = bar_lines(bar, [(name, row["probability"]) for name, row in zip(names, rows, strict=True)])
    left_out = len(probabilities) - len(rows)
    return "\n".join([*map(shown, lines), *([f"and {left_out} more"] if left_out else [])])


def adapter_table(adapter: Mapping[str, Any]) -> Table:
    """Make a table of one adapter, with a row for each field."""
    table = Table(title=f"adapter {shown(adapter['id'])}", show_header=False)
    base, support = adapter["base"], adapter["support"]
    losses = adapter["diagnostics"]["losses"]
    rows = {
        "base": f"{base['id']} ({base['quantisation']})",
        "posterior": adapter["posterior"],
        "support": f"{support['n']} examples, {support['tokens']} tokens",
        "labels": ", ".join(f"{label}: {n}" for label, n in support["per_label"].items()) or "free text",
        "loss by step": " ".join(f"{loss:.3f}" for loss in losses),
        "warnings": "\n".join(adapter["warnings"]) or "none",
    }
    for name, value in rows.items():
        table.add_row(name, shown(value))
    return table


def diagnosis_table(answer: Mapping[str, Any]) -> Table:
    """Make a table of a diagnosis: the verdict, its evidence, and the examples to check."""
    table = Table(title=f"adapter {shown(answer['adapter_id'])}: {answer['verdict']}", show_header=False)
    movement = answer["movement"]
    kl, change = movement["kl_nats"], movement["relative_mean_change"]
    rows = {"why": "\n".join(reason["message"] for reason in answer["reasons"])}
    for name in ("held_out", "prior", "in_context"):
        found = answer[name]
        interval = f"[{found['low']:.2f}, {found['high']:.2f}]"
        rows[name.replace("_", " ")] = (
            f"{found['correct']} of {found['n']} right, {interval}; NLL {found['nll']:.2f}"
        )
    for name in ("over_prior", "over_in_context"):
        found = answer[name]
        gain = f"{found['log_likelihood_gain']:+.2f} ± {found['standard_error']:.2f} nats"
        rows[f"helped {name.replace('_', ' ')}"] = (
            f"{found['helped']}: {gain}; {found['gained']} gained, {found['lost']} lost"
        )
    moved = [] if kl is None else [f"{kl:.3g} nats, {movement['kl_nats_floored']:.3g} with floored spreads"]
    rows["moved"] = "; ".join(moved + ([] if change is None else [f"the mean by {change:.1%}"]))
    rows["suspect"] = "\n".join(
        f"{s['index']}: labelled {s['label']}, answered {s['answer']} ({s['probability']:.2f})"
        for s in answer["suspects"]
    )
    rows["conflicts"] = "\n".join(
        f"{', '.join(map(str, c['indices']))}: {', '.join(c['labels'])}" for c in answer["conflicts"]
    )
    rows["never shown"] = ", ".join(answer["unseen_options"])
    for name, value in rows.items():
        table.add_row(name, shown(value or "none"))
    return table


def readapted_table(answer: Mapping[str, Any]) -> Table:
    """Make a table of adapters that were made again, or would be: the price in a dry run."""
    only_look = answer["dry_run"]
    lost = [name for row in answer["readapted"] if row["loses_calibration"] for name in row["names"]]
    caption = f"lose their certificate: {', '.join(lost)}; calibrate the new adapters" if lost else None
    title = "dry run: nothing was made" if only_look else "made again"
    table = Table(title=title, caption=shown(caption) if caption else None)
    for heading in ("adapter", "new adapter", "names", "to adapt" if only_look else "made"):
        table.add_column(heading, overflow="fold")
    for row in answer["readapted"]:
        seconds = row.get("adapt_seconds")
        if not only_look:
            done = "now" if row.get("cache") == "miss" else "before"
        elif row.get("refusal"):
            done = row["refusal"]
        else:
            price = "not known" if seconds is None else f"{seconds:.1f} s"
            done = "0 s, it is there" if row.get("made_already") else price
        table.add_row(row["adapter_id"], row["new_adapter_id"], ", ".join(row["names"]), shown(done))
    return table


def dry_run_table(answer: Mapping[str, Any]) -> Table:
    """Make a table of a dry run: what the files mean, and what they would take."""
    table = Table(title="dry run: nothing was done", show_header=False)
    price = answer["price"]
    rows = {
        "examples": str(answer["examples"]),
        "inputs": str(answer["inputs"]),
        "options": ", ".join(map(_short, answer["options"])) or "of each row, or none",
        "tokens": f"{answer['tokens']}, at most {answer['longest_tokens']} in one row",
    }
    if price is not None:
        least = "at least" if price["at_least"] else "about"
        adapt = "0 s, the adapter is there" if answer["made_already"] else f"{price['adapt_seconds']:.1f} s"
        rows["to adapt"] = adapt
        rows["to predict"] = f"{least} {price['predict_seconds']:.1f} s"
    for name, value in rows.items():
        table.add_row(name, shown(value))
    return table


def models_table(catalogue: Mapping[str, Any]) -> Table:
    """Make a table of the catalogue's base models, with the posteriors of the package below."""
    table = Table(
        title="base models", caption="posteriors: " + shown(", ".join(catalogue["posteriors"]) or "none")
    )
    for heading in ("name", "quantisation", "default"):
        table.add_column(heading)
    for base in catalogue["bases"]:
        table.add_row(shown(base["name"]), base["quantisation"], "yes" if base["default"] else "")
    return table


def fetched_table(answer: Mapping[str, Any]) -> Table:
    """Make a table of what the first use needs: where it is from, where it lies, and its sizes."""
    table = Table(title="what the first use needs")
    for heading in ("what", "name", "state", "download", "folder", "on disk"):
        table.add_column(heading, overflow="fold")
    for row in answer["needed"]:
        sizes = [
            "" if row[name] is None else f"{row[name] / 1e6:.0f} MB"
            for name in ("download_bytes", "folder_bytes")
        ]
        table.add_row(
            row["what"], shown(row["name"]), row["state"], sizes[0], shown(row["folder"] or ""), sizes[1]
        )
    return table


def names_table(names: Sequence[Mapping[str, Any]]) -> Table:
    """Make a table with a row for each name: its current version, and the adapter of that."""
    table = Table(title="names of adapters")
    for heading in ("name", "version", "adapter", "since", "note"):
        table.add_column(heading, overflow="fold")
    for name in names:
        current = name["current"]
        adapter = current["adapter_id"] if current["available"] else f"{current['adapter_id']} (not there)"
        table.add_row(
            name["name"], str(current["version"]), adapter, current["created"], shown(current["note"] or "")
        )
    return table


def findings_table(answer: Mapping[str, Any]) -> Table:
    """Make a table of what is not intact in the data folder, with the numbers of what is."""
    intact = ", ".join(f"{count} {kind}s" for kind, count in answer["intact"].items())
    table = Table(title=f"intact: {intact}; not intact: {len(answer['findings'])}")
    for heading in ("kind", "id", "reason", "moved aside"):
        table.add_column(heading, overflow="fold")
    for row in answer["findings"]:
        table.add_row(
            shown(row["kind"]), shown(row["id"]), shown(row["reason"]), "yes" if row["moved"] else "no"
        )
    return table


def garbage_table(answer: Mapping[str, Any]) -> Table:
    """Make a table of what was removed from a store, or would be."""
    size = sum(row["bytes"] for row in answer["garbage"]) / 1e6
    verb = "removed" if answer["removed"] else "would be removed"
    table = Table(title=f"{verb}: {len(answer['garbage'])}, {size:.1f} MB")
    for heading in ("what", "place", "changed"):
        table.add_column(heading, overflow="fold")
    for row in answer["garbage"]:
        table.add_row(row["what"], shown(row["place"]), row["modified"])
    return table


def counts_table(verb: str, counts: Mapping[str, int]) -> str:
    """Return one line that says how many entries of each kind there were."""
    return f"{verb}: " + ", ".join(f"{count} {kind}s" for kind, count in counts.items())


def moved_table(moved: Sequence[Mapping[str, str]]) -> Table:
    """Make a table of what became of the entries of an import, those that are not new first."""
    added = sum(row["outcome"] == "added" for row in moved)
    table = Table(title=f"added: {added} of {len(moved)}")
    for heading in ("kind", "id", "outcome"):
        table.add_column(heading, overflow="fold")
    for row in sorted(moved, key=lambda row: row["outcome"] == "added"):
        table.add_row(row["kind"], shown(row["id"]), row["outcome"])
    return table


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
