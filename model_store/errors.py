"""What can go wrong with stored things. Every error is picklable: it is rebuilt from its message alone."""


class StoreError(Exception):
    """Base of every error that `model_store` raises."""


class UnknownBaseError(StoreError, LookupError):
    """A base model's name is in no catalogue, is no folder, and does not look like a hub id."""


class UnusableBaseError(StoreError):
    """A base model was found but cannot be used, such as one without safetensors weights."""


class FetchError(StoreError):
    """A download failed after every retry."""


class ChecksumError(FetchError):
    """What was downloaded is not what the catalogue expects, after every retry."""


class StorageFullError(StoreError):
    """The disk is full, or would be. Nothing half-written is left."""


class CorruptArtifactError(StoreError):
    """A stored artifact is incomplete, or does not match the digests in its manifest."""


class UnsupportedFormatError(StoreError):
    """An artifact was written in a format that this version does not read."""


class UnknownArtifactError(StoreError, LookupError):
    """No posterior artifact ships under this id, and no folder has this path."""


class StoreInUseError(StoreError):
    """Another live process owns this adapter store."""


class UnsupportedPeftError(StoreError):
    """A PEFT adapter cannot be taken over: it does more than add a LoRA to layers, or to others than the base has."""


class FolderNotEmptyError(StoreError):
    """Something lies already where a folder was to be written."""
