"""How much memory serving takes: measured on the loaded model, and turned into budgets before the first request.

    peak = base + transient + slots * slot + max(adaptation + adapt tokens * adapt cost, samples + predict tokens * predict cost)

`base` is every weight as it is held; `transient` the largest quantised weight made dense; `slot` one task posterior in fp32;
`adaptation` gradient and optimiser state of one; `samples` the adapters that the samples of a chunk are turned into. The
cost of a token is what autograd keeps for it (adapt: counted on a small batch), or what the widest layer holds at once
(predict: from its shapes).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from abmll.adaptation.loss import Batch, step_loss
from abmll.adaptation.support import prepare
from abmll.decoder.backbone import Backbone
from abmll.decoder.layout import unflatten
from abmll.decoder.quantised import FrozenLinear, is_quantised
from abmll.decoder.rows import collate
from abmll.posterior.noise.families import family_of
from abmll.posterior.posteriors import GlobalPosterior
from abmll.prediction.option_scores import SAMPLES_PER_CHUNK
from abmll.text.prompting import EncodedPrompt, LabelledPrompt

# Tokens of the batch that is counted, in rows of a usual length.
PROBE_ROWS, PROBE_TOKENS = 2, 48
# phi, its gradient before and after autograd's views are joined, two moments, and theta: copies of P values in one adaptation.
COPIES_IN_ADAPTATION = 6


@dataclass(frozen=True)
class MemoryCosts:
    """What things cost, in bytes; tokens are those of packed rows (times samples, for prediction)."""

    base_bytes: int
    transient_bytes: int
    slot_bytes: int
    adapt_bytes_per_token: int
    predict_bytes_per_token: int
    adaptation_bytes: int
    sample_bytes: int

    @property
    def samples_bytes(self) -> int:
        """Adapters of the samples of one chunk."""
        return SAMPLES_PER_CHUNK * self.sample_bytes

    def peak_bytes(
        self, slots: int, adapt_tokens: int, predict_tokens: int, samples: int = SAMPLES_PER_CHUNK
    ) -> int:
        """Most memory with so many adapters held and passes of so many tokens (and samples) at a time."""
        adapting = self.adaptation_bytes + adapt_tokens * self.adapt_bytes_per_token
        predicting = samples * self.sample_bytes + predict_tokens * self.predict_bytes_per_token
        held = self.base_bytes + self.transient_bytes + slots * self.slot_bytes
        return held + max(adapting if adapt_tokens else 0, predicting if predict_tokens else 0)

    def plan(self, budget_bytes: int, slots_share: float = 0.25, max_tokens: int = 8192) -> MemoryPlan:
        """Budgets for a device that has `budget_bytes` beside the base; at least one slot and one short row are planned."""
        fixed = self.transient_bytes + max(self.adaptation_bytes, self.samples_bytes)
        left = max(0, budget_bytes - fixed)
        slots = max(1, int(left * slots_share) // self.slot_bytes)
        work = max(0, left - slots * self.slot_bytes)
        adapt, predict = (
            min(max_tokens, max(64, work // cost))
            for cost in (self.adapt_bytes_per_token, self.predict_bytes_per_token)
        )
        return MemoryPlan(self, budget_bytes, slots, adapt, predict)


@dataclass(frozen=True)
class MemoryPlan:
    """How a device's memory is to be used: adapters held, and tokens of one pass by lane."""

    costs: MemoryCosts
    budget_bytes: int
    slots: int
    adapt_tokens: int
    predict_tokens: int

    @property
    def peak_bytes(self) -> int:
        """All of it in use at once."""
        return self.costs.peak_bytes(self.slots, self.adapt_tokens, self.predict_tokens)

    def describe(self) -> str:
        """One line for a log."""
        c, mib = self.costs, 2**20
        return (
            f"base {c.base_bytes / mib:.0f} MiB, transient {c.transient_bytes / mib:.0f} MiB, "
            f"{self.slots} slots of {c.slot_bytes / mib:.1f} MiB, adapt {self.adapt_tokens} tokens of "
            f"{c.adapt_bytes_per_token / 1024:.0f} KiB, predict {self.predict_tokens} tokens of "
            f"{c.predict_bytes_per_token / 1024:.0f} KiB; at most {self.peak_bytes / mib:.0f} MiB"
        )


def measure_costs(backbone: Backbone, prior: GlobalPosterior) -> MemoryCosts:
    """Costs of this model with this posterior. Runs one small forward pass."""
    slot = prior.values.numel() * 4
    weights = {p.untyped_storage()._cdata: p.untyped_storage().nbytes() for p in backbone.model.parameters()}
    return MemoryCosts(
        base_bytes=sum(weights.values()) + _quantisation_state_bytes(backbone),
        transient_bytes=_largest_dense_bytes(backbone),
        slot_bytes=slot,
        adapt_bytes_per_token=_kept_bytes_per_token(backbone, prior),
        predict_bytes_per_token=_widest_bytes_per_token(backbone),
        adaptation_bytes=COPIES_IN_ADAPTATION * slot,
        sample_bytes=family_of(prior.config.noise).sample_bytes(prior.config, backbone.sites, backbone.dtype),
    )


def _kept_bytes_per_token(backbone: Backbone, prior: GlobalPosterior) -> int:
    """Bytes that autograd keeps for each token of a step's forward pass, and the widest layer's gradients."""
    row = EncodedPrompt(tuple(range(1, PROBE_TOKENS - 1)), ((1, 2), (3, 4)))
    prepared = prepare(backbone, [LabelledPrompt(row, 0)] * PROBE_ROWS)
    values = prior.values.to(backbone.device)[None].requires_grad_()
    frozen = {p.untyped_storage()._cdata for p in backbone.model.parameters()}
    kept: dict[int, int] = {}
    tokens, rows = prepared.tokens(range(PROBE_ROWS)), collate([row] * PROBE_ROWS)
    length = rows.visible.shape[-1]
    scored = {len(rows.target), len(rows.scored)}
    grows = {tokens, length, length * PROBE_ROWS, *rows.lengths} | scored

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        own = {values.untyped_storage()._cdata} | frozen
        # What grows with the adapter and not with the tokens is counted with the adaptation.
        if storage._cdata not in own and any(size in grows for size in tensor.shape):
            kept[storage._cdata] = storage.nbytes()
        return tensor.detach()  # an output that its own node held by its history would never be freed

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        batch = Batch.of([(0, prepared, i) for i in range(PROBE_ROWS)], backbone.device)
        phi = unflatten(values, prior.sites, prior.config.layout.rank)
        loss = step_loss(backbone, prior.config, batch, phi, seeds=[1, 2])
    del loss
    return sum(kept.values()) // tokens + _widest_bytes_per_token(backbone)


def _widest_bytes_per_token(backbone: Backbone) -> int:
    """Activations alive at once: around an MLP three of its width, the residual and its like, and a norm's fp32 copies."""
    config = backbone.model.config
    width = 3 * config.intermediate_size + 4 * config.hidden_size
    return int(width * backbone.dtype.itemsize + 2 * config.hidden_size * 4)


def _largest_dense_bytes(backbone: Backbone) -> int:
    """The largest weight that is made dense for a pass: a bf16 copy, and one of the activations' dtype where that differs."""
    sizes = [
        layer.in_features * layer.out_features
        for layer in backbone.model.modules()
        if isinstance(layer, FrozenLinear) and is_quantised(layer.base)
    ]
    copies = 2 + (backbone.dtype.itemsize if backbone.dtype != torch.bfloat16 else 0)
    return max(sizes, default=0) * copies


def _quantisation_state_bytes(backbone: Backbone) -> int:
    """Scales that bitsandbytes keeps beside the weights."""
    total = 0
    for layer in backbone.model.modules():
        if isinstance(layer, FrozenLinear) and is_quantised(layer.base):
            weight = layer.base.weight
            for name in ("SCB", "absmax"):
                state = getattr(weight, name, None)
                if state is None:
                    state = getattr(getattr(weight, "quant_state", None), name, None)
                total += state.nbytes if isinstance(state, Tensor) else 0
    return total
