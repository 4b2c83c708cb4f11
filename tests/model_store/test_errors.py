import pickle

import pytest

from model_store import errors

ALL = [value for value in vars(errors).values() if isinstance(value, type)]


@pytest.mark.parametrize("kind", ALL)
def test_errors_survive_the_way_between_processes(kind):
    copy = pickle.loads(pickle.dumps(kind("what went wrong")))
    assert (type(copy), str(copy)) == (kind, "what went wrong")
    assert issubclass(kind, errors.StoreError)
