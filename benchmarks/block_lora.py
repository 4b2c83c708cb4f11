"""Training several LoRA adapters in one batch over a shared base, the way mLoRA does: contiguous blocks of rows.

The base product is shared; each task's rows lie together and take their own adapter in a loop; every task has an optimiser
of its own. Point estimates: no noise, no posterior. A few lines of ours after mLoRA's published design, not its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from abmll.posterior.posteriors import GlobalPosterior
from abmll.text.prompting import EncodedPrompt
from benchmarks.reference_lora import PEFT_NAMES, Sequences


@dataclass(frozen=True)
class TenantRows:
    """One task's support: its prompts with all options, and the right option of each."""

    prompts: Sequence[EncodedPrompt]
    labels: Sequence[int]

    @property
    def padded_tokens(self) -> int:
        """What its (example, option) rows hold when padded to their longest."""
        longest = max(len(p.prompt) + max(map(len, p.continuations)) for p in self.prompts)
        return longest * sum(len(p.continuations) for p in self.prompts)


class _BlockLinear(nn.Module):
    """A frozen linear layer with one LoRA pair for each block of rows."""

    def __init__(self, base: nn.Module, scaling: float, state: _State) -> None:
        super().__init__()
        self.base, self.scaling, self._state = base, scaling, state
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        parts = [
            part + self.scaling * ((rows @ a.to(rows.dtype).T) @ b.to(rows.dtype).T)
            for part, rows, (a, b) in zip(
                torch.split(y, self._state.blocks),
                torch.split(x, self._state.blocks),
                self.pairs,
                strict=True,
            )
        ]
        return torch.cat(parts)


@dataclass
class _State:
    """Rows of each block of the batch that is running."""

    blocks: list[int]


class BlockLora:
    """A dense base model, taken over, that trains as many adapters at a time as are given to `fit`."""

    def __init__(self, base: Any, prior: GlobalPosterior) -> None:
        self._base, self._prior, self._state = base.requires_grad_(False), prior, _State([])
        self._layers: list[_BlockLinear] = []
        for site in prior.sites:
            layer = base.model.layers[site.layer]
            parent = layer.mlp if site.module in {"gate", "up", "down"} else layer.self_attn
            wrapped = _BlockLinear(
                getattr(parent, PEFT_NAMES[site.module]), prior.config.layout.scaling, self._state
            )
            setattr(parent, PEFT_NAMES[site.module], wrapped)
            self._layers.append(wrapped)

    def start(self, tasks: int) -> list[list[Tensor]]:
        """`tasks` adapters at the posterior's means; their weights, task by task."""
        weights: list[list[Tensor]] = [[] for _ in range(tasks)]
        for layer, tensors in zip(self._layers, self._prior.by_site(), strict=True):
            layer.pairs = [
                (tensors.mean_a.clone().requires_grad_(), tensors.mean_b.clone().requires_grad_())
                for _ in range(tasks)
            ]
            for own, pair in zip(weights, layer.pairs, strict=True):
                own.extend(pair)
        return weights

    def scores(self, tasks: Sequence[TenantRows], chosen: Sequence[Sequence[int]]) -> list[list[Tensor]]:
        """Log-likelihoods of the options of the chosen examples, by task and example, all in one padded batch."""
        picked = [[task.prompts[i] for i in indices] for task, indices in zip(tasks, chosen, strict=True)]
        self._state.blocks = [sum(len(p.continuations) for p in prompts) for prompts in picked]
        pairs = [(p.prompt, option) for prompts in picked for p in prompts for option in p.continuations]
        rows = Sequences.of([prompt for prompt, _ in pairs], [option for _, option in pairs])
        where = [
            (i, n - back)
            for i, (n, k) in enumerate(zip(rows.lengths, rows.scored, strict=True))
            for back in range(1, k + 1)
        ]
        row, position = torch.tensor(where).T
        hidden = self._base.model(
            input_ids=rows.ids, attention_mask=rows.mask, use_cache=False
        ).last_hidden_state
        logits = self._base.lm_head(hidden[row, position - 1]).float()
        tokens = logits.log_softmax(-1).gather(1, rows.ids[row, position][:, None])[:, 0]
        flat = tokens.new_zeros(len(rows.lengths)).index_add(0, row, tokens)
        counts = [len(p.continuations) for prompts in picked for p in prompts]
        examples = iter(torch.split(flat, counts))
        return [[next(examples) for _ in prompts] for prompts in picked]

    def fit(self, tasks: Sequence[TenantRows], *, steps: int, batch_size: int, learning_rate: float) -> None:
        """AdamW steps of all tasks side by side, each on its support in order, again and again."""
        optimisers = [
            torch.optim.AdamW(own, lr=learning_rate, weight_decay=0.0) for own in self.start(len(tasks))
        ]
        for step in range(steps):
            chosen = []
            for task in tasks:
                size = min(batch_size, len(task.prompts))
                chosen.append([(step * size + i) % len(task.prompts) for i in range(size)])
            losses = [
                scores.logsumexp(0) - scores[task.labels[i]]
                for task, indices, found in zip(tasks, chosen, self.scores(tasks, chosen), strict=True)
                for i, scores in zip(indices, found, strict=True)
            ]
            for optimiser in optimisers:
                optimiser.zero_grad()
            torch.autograd.backward(torch.stack(losses).sum())
            for optimiser in optimisers:
                optimiser.step()
