"""What the noise of prediction costs: S posterior samples against S passes of the mean, and how much of it is drawing.

    python -m benchmarks.sampling --data ../shared/data

Both arms take the same packed rows through the adapted layers S times, in chunks of the same size. `mean` adds the rank-r means
alone; `samples` draws signs, builds the samples' adapters (rank r + m (r + 1)) and adds those; `draw` draws and builds only.
"""

from __future__ import annotations

from typing import Any

import torch

from abmll.decoder.layout import unflatten
from abmll.decoder.rows import Group, Rows, collate
from abmll.posterior.noise.families import family_of
from abmll.posterior.noise.point import mean_samples
from abmll.posterior.posteriors import TaskPosterior
from abmll.prediction.option_scores import SAMPLES_PER_CHUNK
from abmll.seeds import sample_seeds
from benchmarks import common
from benchmarks.common import Served


def main() -> None:
    parser = common.arguments(__doc__, data=True)
    parser.add_argument("--task", default="ag_news")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--samples", type=int, default=16)
    options = parser.parse_args()
    if options.quick:
        options.rows, options.samples, options.repeats = [2], 2, 1
    served = common.load_served(options.posterior, options.threads)
    body, detail = [], {}
    for count in options.rows:
        cell = common.read_cell(options.data, options.task, 8, count, options.seed)
        adapted = served.model.adapt(cell.support, seed=options.seed).posterior
        groups = [Group((served.model.encoder.encode(query),)) for query in cell.queries]
        passes = Passes(served, adapted, groups, options.samples, options.seed)
        arms = {"mean": passes.mean, "samples": passes.samples, "draw": passes.draw}
        for run in arms.values():
            run()
        detail[str(count)] = common.interleaved(arms, options.repeats)
        middle = common.medians(detail[str(count)])
        body.append([count, *middle.values(), middle["samples"] / middle["mean"]])
        print(body[-1], flush=True)
    about = f"Task {options.task}, S = {options.samples}; m = {served.model.prior.config.noise_rank} sign vectors a sample."
    head = ["queries", "mean s", "samples s", "of it drawing and building s", "samples / mean"]
    title = "The cost of sampling"
    common.write_results(
        "sampling", title, [about], [common.table(head, body)], detail, options, served.dtype
    )


class Passes:
    """S passes over the same rows, with samples or with the mean."""

    def __init__(
        self, served: Served, phi: TaskPosterior, groups: list[Group], samples: int, seed: int
    ) -> None:
        self._backbone, self._config, self._seed = served.model.backbone, phi.config, seed
        self._tensors = unflatten(phi.values[None], phi.sites, phi.config.layout.rank)
        self._chunks = [
            range(n, min(n + SAMPLES_PER_CHUNK, samples)) for n in range(0, samples, SAMPLES_PER_CHUNK)
        ]
        self._groups, self._rows = groups, {len(c): collate(groups * len(c)) for c in self._chunks}
        self._hidden = self._backbone.trunk(collate(groups))

    @torch.no_grad()
    def mean(self) -> None:
        """The mean, as often as there are samples."""
        for chunk in self._chunks:
            self._score(
                mean_samples(self._config.layout, self._tensors), [0] * len(chunk), self._rows[len(chunk)]
            )

    @torch.no_grad()
    def samples(self) -> None:
        """Every sample once."""
        for chunk in self._chunks:
            self._score(self._drawn(chunk), range(len(chunk)), self._rows[len(chunk)])

    @torch.no_grad()
    def draw(self) -> None:
        """The adapters alone."""
        for chunk in self._chunks:
            self._drawn(chunk)

    def _drawn(self, chunk: range) -> Any:
        family = family_of(self._config.noise)
        seeds = sample_seeds(self._seed, chunk.start, chunk.stop, paired=family.paired)
        return family.samples(
            self._config, self._backbone.sites, self._tensors, seeds=seeds, task_of_sample=[0] * len(seeds),
            dtype=self._backbone.dtype,
        )  # fmt: skip

    def _score(self, samples: Any, of_copy: Any, rows: Rows) -> None:
        of_row = [sample for sample in of_copy for _ in self._groups]
        draw = samples.for_rows(of_row, rows.lengths)
        self._backbone.log_probs(self._hidden.repeat(len(of_row) // len(self._groups), 1), rows, draw)


if __name__ == "__main__":
    main()
