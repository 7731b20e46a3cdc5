"""Docstrings of the three styles. Nothing is fake."""

from collections.abc import Callable
from typing import Any

import pytest

from factorial.tools import function_tool
from factorial.tools.docstring import read_docstring


def google(city: str, days: int) -> None:
    """Look ahead.

    Uses the national service: slow.

    Args:
        city (str, optional): The city, as in
            "Paris, FR".
        days: How many
            days: at most 14.

    Returns:
        str: The forecast.

    Call it once.
    """


def numpy(city: str, days: int, nights: int) -> None:
    """Look ahead.

    Parameters
    ----------
    city : str, default: "Paris"
        The city, as in
        "Paris, FR".
    days, nights : int
        How many.

    Returns
    -------
    str
        The forecast.
    """


def sphinx(city: str, days: int) -> None:
    """Look ahead.

    :param city: The city, as in
        "Paris, FR".
    :param int days: How many.
    :type city: str
    :return: The forecast.
    """


@pytest.mark.parametrize(
    ("function", "description", "parameters"),
    [
        (
            google,
            "Look ahead.\n\nUses the national service: slow.\n\nCall it once.",
            {"city": 'The city, as in "Paris, FR".', "days": "How many days: at most 14."},
        ),
        (numpy, "Look ahead.", {"city": 'The city, as in "Paris, FR".', "days": "How many.", "nights": "How many."}),
        (sphinx, "Look ahead.", {"city": 'The city, as in "Paris, FR".', "days": "How many."}),
    ],
)
def test_styles(function: Callable[..., Any], description: str, parameters: dict[str, str]) -> None:
    assert read_docstring(function) == (description, parameters)


@pytest.mark.parametrize(
    "text",
    ["", "One line.", "Says: hello.\n\nNote that it is slow.", "Example of Args: none", "A\n\n- Args\n- Returns"],
)
def test_plain_text_is_the_description(text: str) -> None:
    def function() -> None: ...

    function.__doc__ = text
    assert read_docstring(function) == (text, {})


def test_descriptions_reach_the_schema() -> None:
    properties = function_tool(google).params_json_schema["properties"]
    assert properties["days"] == {"type": "integer", "description": "How many days: at most 14."}
