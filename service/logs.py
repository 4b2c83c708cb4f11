"""How log lines are written: as text, or as one JSON object a line, with the request's notes.

No line has the text of a request. A JSON line leaves the message of an exception out, since it may
quote one, and has its kind and where it was raised.
"""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

from service.request_notes import current_notes

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON.

    `extra={"fields": {...}}` of a log call adds fields. `worker` is the name of the worker whose
    process writes; None in the server's.
    """

    def __init__(self, worker: str | None = None) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        notes = current_notes()
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "worker": self._worker,
            "request_id": notes and notes.request_id,
            "tenant": notes and notes.tenant,
            "adapter_id": notes and notes.adapter_id,
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
            line["raised_at"] = _places(record.exc_info[2])
        return json.dumps({name: value for name, value in line.items() if value is not None}, default=str)


def _places(raised: TracebackType | None) -> list[str]:
    return [f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in traceback.extract_tb(raised)]


def set_up_logs(form: LogFormat = "text", level: LogLevel = "info", worker: str | None = None) -> None:
    """Have this process write its log to standard error, from `level` on.

    httpx, which logs each request that it sends, is heard from warnings on.
    """
    handler = logging.StreamHandler()
    by = f" worker {worker}" if worker else ""
    text = logging.Formatter(f"%(asctime)s %(levelname)s{by} %(name)s: %(message)s")
    handler.setFormatter(JsonLines(worker) if form == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
