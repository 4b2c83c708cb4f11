"""Opens the place that an address names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from model_store.errors import UnusableFolderError
from model_store.objects.contract import Objects
from model_store.objects.folder import FolderObjects


def check_url(url: str) -> str:
    """Return `url`. Raises `ValueError` unless it is `s3://bucket/prefix` or `file:///folder`."""
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "keys and options do not belong into the address: give them in the environment, such as "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
        )
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return url
    if parts.scheme == "s3" and parts.netloc:
        return url
    raise ValueError("the address of a store is `s3://bucket/prefix` or `file:///folder`")


def open_objects(url: str, timeout_seconds: float) -> Objects:
    """Open the place. A call takes `timeout_seconds` at most, retries included.

    Raises `ValueError` as `check_url`, and `UnusableFolderError`, also where the extra `s3` is not
    installed.
    """
    parts = urlsplit(check_url(url))
    if parts.scheme == "file":
        return FolderObjects(Path(unquote(parts.path)), timeout_seconds)
    try:
        from model_store.objects.s3 import S3Objects  # noqa: PLC0415 - of an extra
    except ImportError as error:
        raise UnusableFolderError(
            f"the store {url} needs the library obstore: pip install 'abmll-serve[s3]'"
        ) from error
    return S3Objects(parts.netloc, parts.path.strip("/"), timeout_seconds)
