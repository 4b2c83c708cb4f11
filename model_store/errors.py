"""Errors of stored things. Every error is picklable: it is rebuilt from its message alone."""


class StoreError(Exception):
    """Base of every error that `model_store` raises."""


class UnknownBaseError(StoreError, LookupError):
    """The name of a base model is in no catalogue, is no folder, and is no hub id."""


class UnusableBaseError(StoreError):
    """A base model was found but cannot be used, such as one without safetensors weights."""


class FetchError(StoreError):
    """A download failed after every retry."""


class PublishError(StoreError):
    """The model hub did not take what was sent, or did not answer."""


class ChecksumError(FetchError):
    """A download differs from what the catalogue expects, after every retry."""


class StorageFullError(StoreError):
    """The disk is full, or would be. Nothing half-written is left."""


class UnusableFolderError(StoreError):
    """A folder cannot be read or written: no rights, a read-only disk, or a file in its place."""


class UnusableDeviceError(StoreError):
    """The device to run a model on is not there, or has too little memory for it."""


class CorruptArtifactError(StoreError):
    """A stored artifact is incomplete, or does not match the digests in its manifest."""


class NonFiniteError(StoreError):
    """A record has a number that is not finite, so it is neither written nor read."""


class UnsupportedFormatError(StoreError):
    """An artifact was written in a format that this version does not read."""


class UnknownArtifactError(StoreError, LookupError):
    """No artifact has this id, and no folder this path."""


class StoreInUseError(StoreError):
    """Another live process owns this adapter store."""


class StoreUnavailableError(StoreError):
    """A shared store does not answer now. A write may have happened or not; nothing is promised."""


class JournalChangedError(StoreError):
    """A journal is not as the caller read it: read it again, and decide again."""


class UnsupportedPeftError(StoreError):
    """A PEFT adapter is more than a LoRA on linear layers, or adapts layers that the base lacks."""


class FolderNotEmptyError(StoreError):
    """A folder that was to be written is not empty."""
