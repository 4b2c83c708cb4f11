"""Settings of how large a request may be."""

from __future__ import annotations

from pydantic import BaseModel, Field


class LimitSettings(BaseModel):
    """How large a request may be."""

    max_body_bytes: int = Field(
        default=1 << 20, ge=1024, description="Largest request body, in bytes; a larger one gets 413."
    )
    body_seconds: float = Field(
        default=60.0,
        gt=0,
        le=24 * 3600,
        description="Longest time in which a request's body arrives, in seconds, and before it its head. "
        "A slower body gets 408, and its connection is closed.",
    )
    # Time of one thread and memory beside the model, with smollm2-135m-instruct on a CPU: a fit to
    # 16, 256, 500 examples of 8 options takes 3, 6, 9 s and 0.25 GB; to 150 examples of 150
    # options, 46 s and 2.4 GB. An input takes 0.6, 4, 5, 10 s and 0.03, 0.7, 0.8, 1.5 GB with 8,
    # 128, 150, 256 options.
    max_support: int = Field(
        default=256, ge=1, description="Most support examples of one adapter. More of them take time."
    )
    max_inputs: int = Field(default=256, ge=1, description="Most inputs of one predict request.")
    max_questions: int = Field(default=400, ge=1, description="Most questions about one input.")
    max_options: int = Field(
        default=256,
        ge=2,
        description="Most options of one example or input. Time and memory grow with them: 128 short ones "
        "need about 1 GB for an input, and 2 GB for a fit.",
    )
    max_text_chars: int = Field(default=32_768, ge=1, description="Longest single text, in characters.")
    max_samples: int = Field(
        default=64,
        ge=16,
        le=64,
        description="Most posterior samples of one prediction; at least the default of a request.",
    )
    max_folds: int = Field(default=32, ge=2, description="Most folds of one diagnosis.")
    max_steps: int = Field(default=64, ge=1, description="Most gradient steps of one adaptation.")
    max_new_tokens: int = Field(
        default=256,
        ge=32,
        description="Most tokens of one free-text answer; at least the default of a request.",
    )
    max_names: int = Field(
        default=10_000,
        ge=1,
        description="Most names of adapters, deleted ones included: the numbers of their versions do not come again.",
    )
