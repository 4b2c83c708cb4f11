from __future__ import annotations

import pickle

import pytest

from abmll.errors import AbmllError, OptionsError, PromptTooLongError, SupportError
from service import errors
from service.errors import ServiceError, field_path, from_exception


def all_errors(kind: type[ServiceError] = ServiceError) -> list[type[ServiceError]]:
    return [kind, *(error for sub in kind.__subclasses__() for error in all_errors(sub))]


@pytest.mark.parametrize("kind", [kind for kind in all_errors() if kind.__module__ == errors.__name__])
def test_errors_survive_pickling_whole(kind: type[ServiceError]) -> None:
    error = kind("what went wrong", "support[1].output", 7, "adp_1")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert vars(copy) == vars(error)
    assert str(copy) == "what went wrong"


def test_codes_are_different_and_retryable_means_slow_busy_or_unavailable() -> None:
    kinds = [kind for kind in all_errors() if kind is not ServiceError]
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert {kind.status for kind in kinds if kind.retryable} == {408, 429, 503, 504, 507}


@pytest.mark.parametrize(
    ("theirs", "code", "status"),
    [
        (PromptTooLongError(9, 8), "prompt_too_long", 422),
        (OptionsError("repeated"), "invalid_options", 422),
        (SupportError("empty"), "invalid_support", 422),
        (AbmllError("other"), "invalid_request", 422),
        (RuntimeError("secret path"), "internal_error", 500),
    ],
)
def test_what_the_method_refuses_keeps_its_message_and_surprises_keep_none(
    theirs: Exception, code: str, status: int
) -> None:
    ours = from_exception(theirs, "support")
    assert (ours.code, ours.status) == (code, status)
    assert (str(theirs) in ours.message) is (status == 422)


def test_a_service_error_is_passed_through() -> None:
    error = errors.QueueFullError("busy")
    assert from_exception(error) is error


def test_field_paths_read_like_the_request() -> None:
    assert field_path(["support", 3, "output"]) == "support[3].output"
    assert field_path(["options", 0]) == "options[0]"
    assert field_path([]) == ""
