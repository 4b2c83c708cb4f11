"""The diagnosis of an adapter as a file beside its manifest.

A diagnosis can be made again, so a damaged file counts as none.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from abmll.assurance.diagnostics import Diagnosis
from model_store.storage import finite_json, refusal_is_an_error, write_durably
from model_store.tensors import canonical_json

FORMAT_VERSION = 1
DIAGNOSIS_FILE = "diagnosis.json"
_log = logging.getLogger(__name__)
_diagnosis = TypeAdapter(Diagnosis)


def write_diagnosis(folder: Path, diagnosis: Diagnosis) -> None:
    """Write the diagnosis into `folder`, whole or not at all, in place of an earlier one.

    Raises `StorageFullError`.
    """
    with refusal_is_an_error(f"the diagnosis of {folder.name}"):
        write_durably(folder / DIAGNOSIS_FILE, diagnosis_text(diagnosis))


def diagnosis_text(diagnosis: Diagnosis) -> str:
    """Return the content of the file."""
    values = _diagnosis.dump_python(diagnosis, mode="json")
    record = {"format_version": FORMAT_VERSION, "digest": _digest(values), "diagnosis": values}
    return json.dumps(record, indent=1)


def read_diagnosis(folder: Path) -> Diagnosis | None:
    """Return the diagnosis in `folder`; None where there is none.

    One that cannot be read is logged, and counts as none.
    """
    try:
        record = finite_json((folder / DIAGNOSIS_FILE).read_text(encoding="utf-8"))
        if record["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"format {record['format_version']!r} is not the one read here, {FORMAT_VERSION}"
            )
        if record["digest"] != _digest(record["diagnosis"]):
            raise ValueError("it does not match its digest")
        return _diagnosis.validate_python(record["diagnosis"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        _log.warning("the diagnosis of %s is ignored: %s", folder.name, error)
        return None


def _digest(values: Any) -> str:
    return hashlib.sha256(canonical_json(values)).hexdigest()
