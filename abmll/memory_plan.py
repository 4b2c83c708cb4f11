"""How much memory serving takes, measured on the loaded model, and budgets from it.

    peak = base + transient + slots * slot + adaptations * adaptation
        + max(adaptations * step + adapt tokens * adapt cost, samples + predict tokens * predict cost)

`base` is every weight as it is held. `transient` is the largest quantised weight made dense. `slot`
is the values of one task posterior in fp32. `adaptation` is what one adaptation holds from its
beginning to its end, and `step` what it takes beside that while a step is made. `samples` is the
adapters that the samples of a chunk are turned into. A pass that rests and has no room to be kept
holds what its layers read, which is not counted: 15 layers of 8,000 tokens take 220 MB in bf16 with
the embedded default. The cost of a token is what autograd keeps for it (adapt: counted on a small
batch), or what the widest layer holds at once (predict: from its shapes).
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
from abmll.posterior.noise.draws import sampled_sites
from abmll.posterior.noise.families import family_of
from abmll.posterior.posteriors import GlobalPosterior
from abmll.prediction.option_runs import SAMPLES_PER_CHUNK
from abmll.text.prompting import EncodedPrompt, LabelledPrompt

# The batch that is counted: rows of a usual length.
PROBE_ROWS, PROBE_TOKENS = 2, 48
# Copies of P values that an adaptation holds: phi, two moments, and the gradient of a step's parts.
COPIES_HELD = 4
# Copies of P values beside these in a step: phi and theta of all runs in one tensor, their
# gradient, and that of a pass before and after autograd joins the views. Measured: 5.0 to 6.0.
COPIES_IN_STEP = 6
# Tokens of a support of the usual size, of which an adaptation holds the trunk's activations.
SUPPORT_TOKENS = 2048
# Adaptations that are worth their memory: more of them at a time make none faster.
MOST_ADAPTATIONS = 64


@dataclass(frozen=True)
class MemoryCosts:
    """Costs in bytes. Tokens are those of packed rows; in prediction, times samples.

    `adaptation_bytes` is what an adaptation holds from its beginning to its end, with the
    activations of `SUPPORT_TOKENS`; a longer support holds more. `step_bytes` is what its steps
    take beside that. `slot_bytes` does not count an adapter's class examples. They lie on the host,
    and their size depends on the support: with the posterior that ships, 73 KB beside 9.1 MB for 16
    examples of 3 classes.
    """

    base_bytes: int
    transient_bytes: int
    slot_bytes: int
    adapt_bytes_per_token: int
    predict_bytes_per_token: int
    adaptation_bytes: int
    step_bytes: int
    sample_bytes: int

    @property
    def samples_bytes(self) -> int:
        """Return the bytes of the adapters of one chunk's samples."""
        return SAMPLES_PER_CHUNK * self.sample_bytes

    def peak_bytes(
        self,
        slots: int,
        adapt_tokens: int,
        predict_tokens: int,
        samples: int = SAMPLES_PER_CHUNK,
        adaptations: int = 1,
    ) -> int:
        """Return the most bytes in use with `slots` adapters and `adaptations` held.

        `adapt_tokens` and `predict_tokens` are the most tokens of a pass; 0 means that there is
        none. A pass of prediction has at most `samples` samples at a time.
        """
        adapting = adaptations * self.step_bytes + adapt_tokens * self.adapt_bytes_per_token
        predicting = samples * self.sample_bytes + predict_tokens * self.predict_bytes_per_token
        held = self.base_bytes + self.transient_bytes + slots * self.slot_bytes
        held += adaptations * self.adaptation_bytes if adapt_tokens else 0
        return held + max(adapting if adapt_tokens else 0, predicting if predict_tokens else 0)

    def plan(
        self,
        budget_bytes: int,
        slots_share: float = 0.25,
        max_tokens: int = 8192,
        adaptations_share: float = 0.25,
    ) -> MemoryPlan:
        """Plan for a device that has `budget_bytes` beside the base.

        The plan has at least one slot, one adaptation and one short row, also where the budget is
        too small for them.
        """
        fixed = self.transient_bytes + self.adaptation_bytes + max(self.step_bytes, self.samples_bytes)
        left = max(0, budget_bytes - fixed)
        slots = max(1, int(left * slots_share) // self.slot_bytes)
        another = self.adaptation_bytes + self.step_bytes
        others = min(MOST_ADAPTATIONS - 1, int(left * adaptations_share) // another)
        work = max(0, left - slots * self.slot_bytes - others * another)
        adapt, predict = (
            min(max_tokens, max(64, work // cost))
            for cost in (self.adapt_bytes_per_token, self.predict_bytes_per_token)
        )
        return MemoryPlan(self, budget_bytes, slots, 1 + others, adapt, predict)


@dataclass(frozen=True)
class MemoryPlan:
    """How a device's memory is used.

    The plan has the number of slots, that of adaptations at a time, and the most tokens of a pass
    by lane.
    """

    costs: MemoryCosts
    budget_bytes: int
    slots: int
    adaptations: int
    adapt_tokens: int
    predict_tokens: int

    @property
    def peak_bytes(self) -> int:
        """Return the bytes in use when all of the plan is."""
        return self.costs.peak_bytes(
            self.slots, self.adapt_tokens, self.predict_tokens, adaptations=self.adaptations
        )

    def describe(self) -> str:
        """Return one line for a log."""
        c, mib = self.costs, 2**20
        return (
            f"base {c.base_bytes / mib:.0f} MiB, transient {c.transient_bytes / mib:.0f} MiB, "
            f"{self.slots} slots of {c.slot_bytes / mib:.1f} MiB, {self.adaptations} adaptations of "
            f"{(c.adaptation_bytes + c.step_bytes) / mib:.1f} MiB, adapt {self.adapt_tokens} tokens of "
            f"{c.adapt_bytes_per_token / 1024:.0f} KiB, predict {self.predict_tokens} tokens of "
            f"{c.predict_bytes_per_token / 1024:.0f} KiB; at most {self.peak_bytes / mib:.0f} MiB"
        )


def measure_costs(backbone: Backbone, prior: GlobalPosterior) -> MemoryCosts:
    """Return the costs of this model with this posterior.

    Runs one small forward pass.
    """
    slot = prior.values.numel() * 4
    hidden = backbone.model.config.hidden_size * backbone.dtype.itemsize
    weights = {p.untyped_storage()._cdata: p.untyped_storage().nbytes() for p in backbone.model.parameters()}
    return MemoryCosts(
        base_bytes=sum(weights.values()) + _quantisation_state_bytes(backbone),
        transient_bytes=_largest_dense_bytes(backbone),
        slot_bytes=slot,
        adapt_bytes_per_token=_kept_bytes_per_token(backbone, prior),
        predict_bytes_per_token=_widest_bytes_per_token(backbone),
        adaptation_bytes=COPIES_HELD * slot + SUPPORT_TOKENS * hidden,
        step_bytes=COPIES_IN_STEP * slot,
        sample_bytes=family_of(prior.config.noise).sample_bytes(
            prior.config, sampled_sites(prior.config, backbone.sites), backbone.dtype
        ),
    )


def _kept_bytes_per_token(backbone: Backbone, prior: GlobalPosterior) -> int:
    """Return the bytes of a step for each token.

    That is what autograd keeps of the forward pass, and the widest layer's gradients.
    """
    row = EncodedPrompt(tuple(range(1, PROBE_TOKENS - 1)), ((1, 2), (3, 4)))
    prepared = prepare(backbone, [LabelledPrompt(row, 0)] * PROBE_ROWS)
    values = prior.values.to(backbone.device)[None].requires_grad_()
    frozen = {p.untyped_storage()._cdata for p in backbone.model.parameters()}
    kept: dict[int, int] = {}
    tokens, rows = prepared.tokens(range(PROBE_ROWS)), collate([row] * PROBE_ROWS)
    length = rows.parts.shape[-1]
    scored = {len(rows.target), len(rows.scored)}
    grows = {tokens, length, length * PROBE_ROWS, *rows.lengths} | scored

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        own = {values.untyped_storage()._cdata} | frozen
        # A size that grows with the adapter only is counted in `step_bytes`.
        if storage._cdata not in own and any(size in grows for size in tensor.shape):
            kept[storage._cdata] = storage.nbytes()
        return tensor.detach()  # a node that holds its own output would never be freed

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        batch = Batch.of([(0, prepared, i) for i in range(PROBE_ROWS)], backbone.device)
        phi = unflatten(values, prior.sites, prior.config.layout.rank)
        loss = step_loss(backbone, prior.config, batch, phi, seeds=[1, 2])
    del loss
    return sum(kept.values()) // tokens + _widest_bytes_per_token(backbone)


def _widest_bytes_per_token(backbone: Backbone) -> int:
    """Return the bytes a token of the activations that exist at once.

    Around an MLP they are three of its width, four of the hidden size, and a norm's two fp32
    copies.
    """
    config = backbone.model.config
    width = 3 * config.intermediate_size + 4 * config.hidden_size
    return int(width * backbone.dtype.itemsize + 2 * config.hidden_size * 4)


def _largest_dense_bytes(backbone: Backbone) -> int:
    """Return the bytes of the largest weight that is made dense for a pass.

    It takes a bf16 copy, and one in the dtype of the activations where that is another.
    """
    sizes = [
        layer.in_features * layer.out_features
        for layer in backbone.model.modules()
        if isinstance(layer, FrozenLinear) and is_quantised(layer.base)
    ]
    copies = 2 + (backbone.dtype.itemsize if backbone.dtype != torch.bfloat16 else 0)
    return max(sizes, default=0) * copies


def _quantisation_state_bytes(backbone: Backbone) -> int:
    """Return the bytes of the scales that bitsandbytes keeps beside the weights."""
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
