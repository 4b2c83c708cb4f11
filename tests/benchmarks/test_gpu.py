"""The benchmark of a GPU goes through its sections without one, and keeps what a cut one has."""

import argparse
import json
import signal
import time
from pathlib import Path

import pytest
import torch

from abmll.decoder.low_rank import Segments, add_loras
from abmll.decoder.quantised import FrozenLinear
from benchmarks import common
from benchmarks.gpu.__main__ import SECTIONS, main
from benchmarks.gpu.experiments import grouped_loras
from benchmarks.gpu.report import DONE, Report, Section, cut_after


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(common, "QUICK_RESULTS", tmp_path)
    return tmp_path


def report(seconds: float) -> Report:
    options = argparse.Namespace(quick=True, seed=13, threads=1, repeats=1)
    return Report(options, seconds, "Title", ["About."], torch.float32)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_every_section_runs_without_a_card_and_says_what_needs_one(results: Path) -> None:
    main(["--device", "cpu", "--quick", "--models", "tiny"])
    found = {
        section["name"]: section for section in json.loads((results / "gpu.json").read_text())["sections"]
    }
    of_tiny = [f"tiny: {title}" for title in ("loading", *SECTIONS, "CUDA graphs")]
    assert list(found) == ["Correctness against the CPU", *of_tiny]
    assert {section["state"] for section in found.values()} == {DONE}
    for name in ("tiny: memory against the plan", "tiny: CUDA graphs"):
        assert all("needs a card" in row for row in found[name]["rows"])
        assert found[name]["rows"]
    assert found["Correctness against the CPU"]["notes"][0].startswith("Needs a card")
    assert "this page says nothing about a GPU" in (results / "gpu.md").read_text()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_every_section_runs_on_a_card(results: Path) -> None:
    main(["--quick", "--models", "tiny"])
    page = (results / "gpu.md").read_text()
    assert "**failed**" not in page
    assert "eeds a card" not in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    ("arguments", "reason"), [([], "no CUDA device"), (["--device", "cpu"], "only with --quick")]
)
def test_a_page_of_results_needs_a_card(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert reason in capsys.readouterr().err


def test_a_section_that_is_cut_keeps_its_rows_and_leaves_time_to_the_next(results: Path) -> None:
    def slow(section: Section) -> None:
        section.head = ["number"]
        section.row(7)
        try:
            time.sleep(60)
        except Exception:  # what libraries do must not keep a section alive
            time.sleep(60)

    page = report(0.4)
    page.run("slow", 0.5, slow)
    assert page.run("next", 0.5, lambda section: "result") == "result"
    cut, after = page.sections
    assert (cut.rows, cut.state[:5], after.state) == ([[7]], "**cut", DONE)
    assert 0.1 < cut.seconds < 10
    assert not page.failed
    assert "| 7 |" in (results / "gpu.md").read_text()


def test_a_section_that_fails_costs_no_other_and_the_run_says_so(results: Path) -> None:
    page = report(60)

    def fails(section: Section) -> None:
        raise ValueError("no memory\nand more")

    assert page.run("fails", 0.5, fails) is None
    page.run("next", 0.5, lambda section: section.note("It ran."))
    assert [section.state for section in page.sections] == ["**failed**: ValueError: no memory", DONE]
    assert page.failed


@pytest.mark.parametrize(("difference", "failed"), [(0.1, False), (0.3, True), (float("nan"), True)])
def test_a_run_fails_where_two_things_differ(results: Path, difference: float, failed: bool) -> None:
    page = report(60)
    page.run("compares", 1.0, lambda section: section.compare("both", difference, 0.2))
    assert page.failed is failed
    assert ("They differ" in (results / "gpu.md").read_text()) is failed


def test_a_timer_that_was_running_goes_on() -> None:
    rung: list[int] = []
    handler = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    before = signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with cut_after(30):
            time.sleep(0.3)
        time.sleep(0.1)
        assert rung == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *before)


@pytest.mark.parametrize("index", [(2, 0, 1), (1,), (0, 1, 0)])
def test_grouped_products_are_those_of_the_product(index: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    segments = Segments(index, (4, 1, 2)[: len(index)])
    layer = FrozenLinear(torch.nn.Linear(6, 5).requires_grad_(False))
    x = torch.randn(sum(segments.lengths), 6, generator=generator)
    a, b = torch.randn(3, 2, 6, generator=generator), torch.randn(3, 5, 2, generator=generator)
    expected = add_loras(x, layer, a, b, segments)
    torch.testing.assert_close(grouped_loras(x, layer, a, b, segments), expected)
