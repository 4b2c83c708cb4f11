"""Messages over a pipe between two processes, as pickles that stay valid when the sender ends."""

from __future__ import annotations

import pickle
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from abmll.errors import AbmllError
from service.errors import ServiceError
from service.executors.contract import AdapterNotHeldError


class Link:
    """One end of a pipe. Any thread may send, one thread receives."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, message: Any) -> None:
        """Write a message to the pipe.

        Raises `OSError` if the other end is closed, and what pickling raises.
        """
        # Not `Connection.send`, which may pass tensors as handles of shared memory: those become
        # invalid when the sender ends.
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        with self._lock:
            self._connection.send_bytes(data)

    def receive(self) -> Any:
        """Wait for the next message. Raises `EOFError` or `OSError` if the other end is closed."""
        return pickle.loads(self._connection.recv_bytes())  # noqa: S301 - from our own process

    def close(self) -> None:
        """Close this end, which no thread may be using."""
        self._connection.close()


def picklable(error: BaseException) -> Exception:
    """Return `error`, or a `RuntimeError` with its message where it does not survive pickling.

    An unexpected error has its traceback as a note.
    """
    if not isinstance(error, AbmllError | ServiceError | AdapterNotHeldError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - just made
    except Exception:
        copy = None
    if isinstance(copy, Exception) and type(copy) is type(error):
        return copy
    substitute = RuntimeError(f"{type(error).__name__}: {error}")
    for note in getattr(error, "__notes__", []):
        substitute.add_note(note)
    return substitute
