"""What a posterior's card says of its run."""

from __future__ import annotations

import json
from pathlib import Path

from lab.training.card_data import mean_losses


def _log(folder: Path, *visits: dict[str, object]) -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(visit) + "\n" for visit in visits))
    return folder


def test_all_visits_count_and_the_losses_are_those_of_visits_to_one_task(tmp_path: Path) -> None:
    found = mean_losses(
        _log(
            tmp_path,
            {"losses": [2.0, 1.0], "seconds": 3},
            {"losses": [9.0, 9.0], "seconds": 4, "mixed": 1},
            {"losses": [1.0, 0.5], "seconds": 5},
        )
    )
    assert (found["visits"], found["seconds"]) == (3, 12)
    assert found["inner_loss_before"] == {"first_tenth": 2.0, "last_tenth": 1.0}
    assert found["inner_loss_after"] == {"first_tenth": 1.0, "last_tenth": 0.5}


def test_a_run_of_mixed_visits_alone_has_their_losses(tmp_path: Path) -> None:
    found = mean_losses(_log(tmp_path, {"losses": [2.0, 1.0], "seconds": 3, "mixed": 1}))
    assert found["inner_loss_before"] == {"first_tenth": 2.0, "last_tenth": 2.0}
