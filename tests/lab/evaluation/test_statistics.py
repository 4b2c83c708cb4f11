"""Intervals, against simulated coverage, closed forms and each other; temperatures; the report."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lab.evaluation.cells import Cell, CellResult
from lab.evaluation.metrics import METRICS, evaluate
from lab.evaluation.statistics import (
    TWO_LEVEL,
    Estimate,
    PairedItems,
    paired_differences,
    task_interval,
    two_level_intervals,
)
from lab.evaluation.tables import StudyResults, markdown, summarise
from lab.evaluation.temperature_scaling import Rule, fit_temperature, scaled, with_temperature
from tests.lab.evaluation.test_metrics import random_result, result


def test_an_estimate_is_over_tasks_that_have_the_metric() -> None:
    found = Estimate.of([1.0, 3.0, math.nan])
    assert (found.mean, found.standard_error, found.tasks) == (2.0, pytest.approx(1.0), 2)
    assert math.isnan(Estimate.of([math.nan]).mean)
    assert math.isnan(Estimate.of([1.0]).standard_error)


def test_the_task_interval_is_about_two_standard_errors_wide() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, 40).tolist()
    low, high = task_interval(values, 2000)
    error = Estimate.of(values).standard_error
    assert low < np.mean(values) < high
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.08)


def paired(task: str, gain: float, n: int = 60) -> tuple[list[CellResult], list[CellResult]]:
    """Return cells of two seeds under each of two methods.

    The accuracy of the first method is about `gain` higher.
    """
    cells = []
    for method, bonus in (("own", gain), ("base", 0.0)):
        for seed in (13, 21):
            rng = np.random.default_rng([len(task), seed])
            labels = rng.integers(2, size=n)
            right = rng.random(n) < 0.6 + bonus
            top = rng.uniform(0.5, 1, n)
            chosen = np.where(right, labels, 1 - labels)
            probabilities = np.where(np.arange(2) == chosen[:, None], top[:, None], 1 - top[:, None])
            cells.append(replace(result(probabilities, labels), cell=Cell(method, task, "16", seed)))
    return cells[:2], cells[2:]


def test_resampled_on_all_items_the_differences_are_those_of_the_metrics() -> None:
    own, base = paired("task", 0.2)
    found = PairedItems.of(own, base).resampled(np.arange(60))
    expected = [
        np.mean([evaluate(a)[name] - evaluate(b)[name] for a, b in zip(own, base, strict=True)])
        for name in TWO_LEVEL
    ]
    assert found == pytest.approx(expected)


def test_two_level_intervals_are_wider_than_those_over_tasks_alone() -> None:
    pairs = [paired("t" * i, 0.2) for i in range(1, 9)]
    items = [PairedItems.of(*pair) for pair in pairs]
    both = two_level_intervals(items, 1000)["accuracy"]
    tasks = task_interval([float(item.differences[:, 0].mean()) for item in items], 1000)
    assert both[0] < tasks[0] < tasks[1] < both[1]
    # Where all items of a task are equal, only the spread of tasks counts.
    same = [replace(item, differences=np.full_like(item.differences, i)) for i, item in enumerate(items)]
    assert two_level_intervals(same, 4000)["nll"] == pytest.approx(
        task_interval(list(range(8)), 4000), abs=0.25
    )


def test_two_level_intervals_cover() -> None:
    """With normal tasks and items, the 95 % interval holds the true mean 0 about that often.

    A bootstrap of 12 tasks gives intervals that are somewhat too short.
    """
    rng, held = np.random.default_rng(1), 0
    for trial in range(60):
        means = rng.normal(0, 1, 12)
        items = [
            PairedItems(rng.normal(mean, 1, (20, 4)), np.zeros((1, 20, 16)), np.zeros((1, 20, 16)))
            for mean in means
        ]
        low, high = two_level_intervals(items, 100, seed=trial)["accuracy"]
        held += low <= 0 <= high
    assert 0.83 <= held / 60 <= 1.0


def test_a_difference_is_paired_by_task() -> None:
    own = {
        "a": dict.fromkeys(METRICS, 1.0),
        "b": dict.fromkeys(METRICS, 2.0),
        "only here": dict.fromkeys(METRICS, 9.0),
    }
    base = {"a": dict.fromkeys(METRICS, 0.5), "b": dict.fromkeys(METRICS, 1.5)}
    found = paired_differences(own, base, [], ["nll"], 100)["nll"]
    assert (found.estimate.mean, found.estimate.standard_error, found.estimate.tasks) == (0.5, 0.0, 2)
    assert (found.low, found.high) == (0.5, 0.5)


# ---- temperature ---------------------------------------------------------------------------------


def test_temperature_undoes_a_sharpening() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1.0, 1.0, 1.0], 20000)
    labels = (rng.random((20000, 1)) > probabilities.cumsum(1)).sum(1)
    sharp = result(scaled(probabilities, 0.5), labels)
    fitted = fit_temperature([sharp])
    assert (fitted.temperature, fitted.exponent) == (pytest.approx(2.0, rel=0.05), 0)
    back = with_temperature(sharp, Rule(2.0), "method+T")
    assert back.probabilities == pytest.approx(probabilities)
    assert back.cell.method == "method+T"


def test_temperature_goes_with_the_size_of_the_support() -> None:
    rng = np.random.default_rng(0)
    truth, cells = Rule(1.5, 0.6), []
    for size in (4, 8, 16, 32, 64):
        probabilities = rng.dirichlet([1.0, 1.0, 1.0], 20000)
        labels = (rng.random((20000, 1)) > probabilities.cumsum(1)).sum(1)
        cell = replace(result(probabilities, labels), support_size=size)
        cells.append(with_temperature(cell, Rule(1 / truth.of(cell)), "sharp"))
    fitted = fit_temperature(cells)
    assert (fitted.temperature, fitted.exponent) == (
        pytest.approx(1.5, rel=0.05),
        pytest.approx(0.6, abs=0.05),
    )
    assert with_temperature(cells[0], truth, "T").probabilities == pytest.approx(
        scaled(cells[0].probabilities, 1.5 * 4**0.6)
    )


def test_fixed_classes_and_multiple_choice_have_their_own_temperatures() -> None:
    rng = np.random.default_rng(0)
    truth, cells = Rule(1.5, 0.0, choice=4.0), []
    for classes in (("a", "b", "c"), ()):
        probabilities = rng.dirichlet([1.0, 1.0, 1.0], 20000)
        labels = (rng.random((20000, 1)) > probabilities.cumsum(1)).sum(1)
        cell = replace(result(probabilities, labels), classes=classes)
        cells.append(with_temperature(cell, Rule(1 / truth.of(cell)), "sharp"))
    fitted = fit_temperature(cells)
    assert (fitted.temperature, fitted.choice) == (pytest.approx(1.5, rel=0.05), pytest.approx(4.0, rel=0.05))
    alone = fit_temperature(cells[1:])
    assert (alone.temperature, alone.choice) == (pytest.approx(4.0, rel=0.05), None)


def test_temperature_leaves_answers_absent_options_and_empty_sets_alone() -> None:
    probabilities = np.array([[0.6, 0.4, 0.0], [1e-30, 1.0, 0.0]])
    soft = scaled(probabilities, 3.0)
    assert soft.sum(1) == pytest.approx([1, 1])
    assert (soft[:, 2] == 0).all()
    assert (soft.argmax(1) == probabilities.argmax(1)).all()
    assert scaled(probabilities, 1.0) == pytest.approx(probabilities)
    assert len(scaled(np.zeros((0, 3)), 2.0)) == 0


# ---- report --------------------------------------------------------------------------------------


def test_the_tables_say_what_the_cells_say() -> None:
    results = {}
    for task, gain in (("one", 0.3), ("three", 0.2), ("seventh", 0.25)):
        for cell in (c for pair in paired(task, gain) for c in pair):
            results[cell.cell] = cell
    del results[Cell("own", "seventh", "16", 21)]  # a task without all seeds does not count
    study = StudyResults(
        {"split": ["one", "three", "seventh"]}, ["base", "own"], "base", ["16"], [13, 21], results
    )
    summary = summarise(study, resamples=200)
    (section,) = summary["sections"]
    own = section["methods"]["own"]
    accuracy = [
        np.mean([evaluate(results[Cell("own", t, "16", s)])["accuracy"] for s in (13, 21)])
        for t in ("one", "three")
    ]
    assert own["metrics"]["accuracy"]["mean"] == pytest.approx(np.mean(accuracy))
    assert own["metrics"]["accuracy"]["tasks"] == 2
    assert own["metrics"]["ood_auroc_information"]["mean"] is None
    base = section["methods"]["base"]["tasks"]
    expected = np.mean([own["tasks"][t]["nll"] - base[t]["nll"] for t in ("one", "three")])
    assert own["difference"]["nll"]["estimate"]["mean"] == pytest.approx(expected)
    assert own["difference"]["nll"]["resampled"] == "tasks and items"
    assert own["difference"]["aurc"]["resampled"] == "tasks"
    assert own["cost"]["peak_memory_bytes"] == 3
    assert section["methods"]["base"]["difference"] == {}
    page = markdown(summary, {"title": "Title", "notes": ["Note."], "run": {"commit": "x"}})
    assert page.startswith("# Title\n\nNote.\n\n## split, k = 16")
    row = next(line for line in page.splitlines() if line.startswith("| own |"))
    error = own["metrics"]["accuracy"]["standard_error"]
    assert row.split(" | ")[1:3] == ["2", f"{np.mean(accuracy):.3f} ± {error:.3f}"]


def test_a_result_is_loaded_as_it_was_saved(tmp_path) -> None:  # type: ignore[no-untyped-def]
    saved = random_result(classes=3)
    saved.save(tmp_path)
    back = CellResult.load(tmp_path, saved.cell)
    assert (back.cell, back.classes, back.cost, back.support_size) == (
        saved.cell,
        saved.classes,
        saved.cost,
        16,
    )
    assert np.array_equal(back.probabilities, saved.probabilities)
    assert np.array_equal(back.mutual_information, saved.mutual_information, equal_nan=True)
    assert not list(tmp_path.rglob("*.partial"))
    with pytest.raises(FileNotFoundError):
        CellResult.load(tmp_path, Cell("other", "task", "16", 13))
