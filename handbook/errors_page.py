"""The page of the error codes, from the classes of `service/errors.py`."""

from __future__ import annotations

import inspect

from handbook.markdown import code, page, paragraph, table
from service.errors import ServiceError, error_kinds


def errors_page() -> str:
    """Return the page: each code with its status, whether a retry may help, and when it comes."""
    found = sorted({error.code: error for error in error_kinds()}.values(), key=_order)
    rows = [
        (
            code(error.code),
            str(error.status),
            "yes" if error.retryable else "no",
            (inspect.getdoc(error) or "").partition("\n\n")[0],
        )
        for error in found
    ]
    return page(
        "Error codes",
        "`service/errors.py`",
        paragraph(
            "The native surface answers an error as one object, `error`, with `code`, `message`, `param` "
            "(the field that is wrong) and `request_id`. Codes are stable, messages are not. "
            "A code with *retry* may go away by itself: the same request may succeed later, and the "
            "header Retry-After says after how many seconds where that is known. Other surfaces have the "
            "same statuses in the form of their own clients."
        ),
        table(("code", "status", "retry", "when"), rows),
        paragraph(
            "`cannot_certify` has one more field, `about_n_more_labels`: an estimate of the missing labels, "
            "or null where more labels of this kind do not help."
        ),
    )


def _order(error: type[ServiceError]) -> tuple[int, str]:
    return error.status, error.code
