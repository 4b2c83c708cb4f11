"""What every noise family gives: samples that are handed to the rows of batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from abmll.decoder.backbone import Draw


class Samples(Protocol):
    """G draws from one or more posteriors, to be handed to the rows of as many batches as needed."""

    def for_rows(
        self,
        sample_of_row: Sequence[int],
        row_tokens: Sequence[int],
        padding: Sequence[int] = (),
        step: int = 0,
    ) -> Draw:
        """The draw of a batch of packed rows; row i has `row_tokens[i]` tokens and uses sample `sample_of_row[i]`.

        Where noise belongs to tokens, the first `padding[i]` of a row take none of it, and tokens that are read in a later
        `step` get other noise than those before.
        """
