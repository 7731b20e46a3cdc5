"""Errors as other processes and debuggers see them."""

import copy
import inspect
import pickle

import pytest

from factorial import errors
from factorial.errors import FactorialError, RateLimitError

CLASSES = [each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, FactorialError)]


def made(of: type[FactorialError]) -> FactorialError:
    """One of this class, with a text for each parameter that it needs."""
    if not inspect.isfunction(of.__init__):  # it has that of Exception or ValueError
        return of("what happened")
    _, *parameters = inspect.signature(of.__init__).parameters.values()
    needed = {each.name: each.name for each in parameters if each.default is each.empty}
    return of(**needed)


@pytest.mark.parametrize("of", CLASSES)
def test_an_error_is_pickled_and_copied_as_it_is(of: type[FactorialError]) -> None:
    error = made(of)
    error.add_note("seen at night")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert (type(again), str(again), vars(again)) == (of, str(error), vars(error))


def test_the_attributes_of_an_error_travel_with_it() -> None:
    error = pickle.loads(pickle.dumps(RateLimitError("slow down", retry_after=2.0, status=429)))
    assert (str(error), error.retry_after, error.status) == ("slow down", 2.0, 429)
