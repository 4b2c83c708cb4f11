"""Settings of files and batches."""

from __future__ import annotations

from pydantic import BaseModel, Field

from service.settings.values import LONGEST_SECONDS


class BulkSettings(BaseModel):
    """Files and batches: how large, how many, and how long they are stored."""

    max_file_bytes: int = Field(
        default=1 << 30,
        ge=1024,
        description="Largest file of rows for a batch, in bytes; a larger one gets 413.",
    )
    max_stored_file_bytes: int = Field(
        default=10 << 30,
        ge=1024,
        description="Most bytes of all files together; beyond it no file and no batch is accepted. Answers of "
        "batches count, and are written all the same. With keys, a tenant has at most as much as is left free.",
    )
    max_files: int = Field(
        default=10_000,
        ge=1,
        description="Most files, with those of answers. With keys, a tenant has at most as many as are left free.",
    )
    max_batch_rows: int = Field(default=1_000_000, ge=1, description="Most rows of one batch.")
    max_batches: int = Field(
        default=1000,
        ge=1,
        description="Most batches; the tenant's oldest one that has ended is deleted for a new one. With keys, "
        "a tenant has at most as many as are left free.",
    )
    batches_at_once: int = Field(
        default=4,
        ge=1,
        le=256,
        description="Most batches of a tenant that are worked on at a time; the others wait.",
    )
    file_ttl_seconds: float = Field(
        default=30 * 24 * 3600.0,
        gt=0,
        le=LONGEST_SECONDS * 12,
        description="Seconds that a file is stored, where its upload says nothing else, and that a batch is "
        "remembered.",
    )
