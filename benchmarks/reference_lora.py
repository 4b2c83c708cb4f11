"""LoRA as a user would write it with PEFT, on the same dense base: the baseline of `peft_baseline`.

Each (input, option) is a row. Rows are padded, and rows of similar lengths are in one batch. The
loss and the prediction normalise over the options of an input, as ours do. A stochastic pass is
Monte Carlo dropout: a pass with dropout switched on.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from abmll.posterior.posteriors import GlobalPosterior
from abmll.text.prompting import EncodedPrompt

PEFT_NAMES = {name: f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}


@dataclass(frozen=True)
class Sequences:
    """Rows [N, L] of token ids with their attention mask.

    The last `scored[i]` tokens of row i are its option.
    """

    ids: Tensor
    mask: Tensor
    lengths: list[int]
    scored: list[int]

    @classmethod
    def of(cls, prompts: Sequence[tuple[int, ...]], options: Sequence[tuple[int, ...]]) -> Sequences:
        """Join each prompt and its option, and pad on the right."""
        rows = [[*prompt, *option] for prompt, option in zip(prompts, options, strict=True)]
        lengths = [len(row) for row in rows]
        ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return cls(ids, mask, lengths, [len(option) for option in options])


def log_likelihoods(model: Any, rows: Sequences, *, needed_only: bool) -> Tensor:
    """Return the log-probability [N] of the option of every row.

    `needed_only` computes logits at the scored positions alone.
    """
    where = [
        (i, position)
        for i, (length, scored) in enumerate(zip(rows.lengths, rows.scored, strict=True))
        for position in range(length - scored, length)
    ]
    ids, mask = rows.ids.to(model.device), rows.mask.to(model.device)
    row, position = torch.tensor(where, device=model.device).T
    targets = ids[row, position]
    if needed_only:
        causal = model.get_base_model()
        hidden = causal.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        logits = causal.lm_head(hidden[row, position - 1])
    else:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[row, position - 1]
    tokens = logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    summed: Tensor = tokens.new_zeros(len(rows.lengths)).index_add(0, row, tokens)
    return summed


class PeftLora:
    """LoRA of PEFT on the modules and layers of `prior`, scored as in `log_likelihoods`."""

    def __init__(
        self, base: Any, prior: GlobalPosterior, *, dropout: float, needed_only: bool, rows_per_pass: int
    ) -> None:
        layout = prior.config.layout
        self._prior, self._needed_only, self._rows_per_pass = prior, needed_only, rows_per_pass
        self.model = get_peft_model(
            base,
            LoraConfig(
                r=layout.rank,
                lora_alpha=layout.alpha,
                lora_dropout=dropout,
                target_modules=[PEFT_NAMES[name] for name in layout.modules],
                layers_to_transform=sorted({site.layer for site in prior.sites}),
                task_type="CAUSAL_LM",
            ),
        )

    def scoring_needed_only(self) -> PeftLora:
        """Return the same adapter and weights, with logits at the scored positions only."""
        other = copy.copy(self)
        other._needed_only = True
        return other

    def start(self, seed: int, *, copy_means: bool) -> None:
        """Reset the adapter to the means of the posterior, or to Kaiming-uniform A and B = 0."""
        torch.manual_seed(seed)
        with torch.no_grad():
            for site, tensors in zip(self._prior.sites, self._prior.by_site(), strict=True):
                suffix = f"layers.{site.layer}."
                name = next(
                    name
                    for name, _ in self.model.named_modules()
                    if f".{suffix}" in name and name.endswith(f".{PEFT_NAMES[site.module]}")
                )
                layer = self.model.get_submodule(name)
                if copy_means:
                    layer.lora_A["default"].weight.copy_(tensors.mean_a)
                    layer.lora_B["default"].weight.copy_(tensors.mean_b)
                else:
                    layer.reset_lora_parameters("default", True)

    def fit(
        self,
        prompts: Sequence[EncodedPrompt],
        labels: Sequence[int],
        *,
        steps: int,
        batch_size: int,
        learning_rate: float,
        seed: int,
    ) -> None:
        """Take AdamW steps on the negative log-likelihood, normalised over the options."""
        self.model.train()
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
        batches = _batches(len(prompts), batch_size, seed)
        for _ in range(steps):
            batch = next(batches)
            rows = _options_as_rows([prompts[i] for i in batch])
            scores = log_likelihoods(self.model, rows, needed_only=self._needed_only)
            counts = [len(prompts[i].continuations) for i in batch]
            losses = [
                part.logsumexp(0) - part[labels[i]]
                for part, i in zip(torch.split(scores, counts), batch, strict=True)
            ]
            optimiser.zero_grad()
            torch.autograd.backward(torch.stack(losses).sum())
            optimiser.step()

    @torch.inference_mode()
    def predict(self, prompts: Sequence[EncodedPrompt], *, samples: int, seed: int) -> list[list[float]]:
        """Return option probabilities, averaged over `samples` dropout passes (0: one without)."""
        torch.manual_seed(seed)
        self.model.train(samples > 0)
        order = [(i, option) for i, prompt in enumerate(prompts) for option in prompt.continuations]
        by_length = sorted(
            range(len(order)), key=lambda n: len(prompts[order[n][0]].prompt) + len(order[n][1])
        )
        chunks = [by_length[k : k + self._rows_per_pass] for k in range(0, len(order), self._rows_per_pass)]
        batches = [
            Sequences.of([prompts[order[n][0]].prompt for n in chunk], [order[n][1] for n in chunk])
            for chunk in chunks
        ]
        counts = [len(prompt.continuations) for prompt in prompts]
        total = [torch.zeros(count, dtype=torch.float64) for count in counts]
        for _ in range(max(samples, 1)):
            scores = torch.empty(len(order))
            for chunk, batch in zip(chunks, batches, strict=True):
                scores[chunk] = log_likelihoods(self.model, batch, needed_only=self._needed_only).cpu()
            for mean, part in zip(total, torch.split(scores.double(), counts), strict=True):
                mean.add_(part.softmax(0), alpha=1 / max(samples, 1))
        return [mean.tolist() for mean in total]


def _options_as_rows(prompts: Sequence[EncodedPrompt]) -> Sequences:
    pairs = [(prompt.prompt, option) for prompt in prompts for option in prompt.continuations]
    return Sequences.of([prompt for prompt, _ in pairs], [option for _, option in pairs])


def _batches(size: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    rng = random.Random(seed)
    while True:
        order = rng.sample(range(size), size)
        for start in range(0, size, batch_size):
            yield order[start : start + batch_size]
