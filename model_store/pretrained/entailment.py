"""Loading the model that judges whether two free-text answers mean the same."""

from __future__ import annotations

from transformers import AutoModelForSequenceClassification, AutoTokenizer

from abmll.prediction.entailment import EntailmentMatch
from model_store.devices import check_device
from model_store.errors import UnusableBaseError


def load_entailment(name: str, device: str = "cpu") -> EntailmentMatch:
    """Load a sequence classifier trained for natural-language inference as an `Equivalence`.

    `name` is a local folder or a hub id. Raises `UnusableBaseError` where there is no such model
    with safetensors weights (pickled ones are never loaded), `UnusableDeviceError`, and
    `abmll.errors.UnsupportedModelError` for one that does not judge entailment.
    """
    check_device(device)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(name, truncation_side="left", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UnusableBaseError(f"no classifier could be loaded from {name!r}: {error}") from error
    return EntailmentMatch(model.to(device).eval().requires_grad_(False), tokenizer)
