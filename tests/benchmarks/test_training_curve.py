import json
from pathlib import Path

import numpy as np

from benchmarks.training_curve import plot, step_losses, trailing_medians


def test_the_curve_is_that_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"visit": n, "losses": [4.0 / n, 2.0]}) + "\n" for n in (1, 2, 4)))
    losses = step_losses(log)
    np.testing.assert_array_equal(losses, [[4, 2], [2, 2], [1, 2]])
    assert trailing_medians(losses[:, 0], window=2) == [4, 3, 1.5]
    plot(losses, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
