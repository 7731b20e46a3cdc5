"""Tool calls and other members of a streamed answer, cut into pieces in the ways in which servers do it. Pure."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factorial.models.transports.pieces import CallPieces, merged

OSLO, CAIRO = '{"city": "Oslo"}', '{"city": "Cairo"}'


def piece(index: int | None = None, call_id: str | None = None, name: str | None = None, arguments: Any = None) -> Any:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    about = {"index": index, "id": call_id}
    return {key: value for key, value in about.items() if value is not None} | {"function": function}


def assembled(*deltas: list[Any]) -> list[tuple[Any, str, Any]]:
    pieces = CallPieces()
    for delta in deltas:
        pieces.add(delta)
    return [(call.get("id"), call["function"]["name"], call["function"]["arguments"]) for call in pieces.whole()]


@pytest.mark.parametrize(
    ("deltas", "calls"),
    [
        pytest.param(
            [[piece(0, "a", "look", "")], [piece(0, "b", None, '{"city": ')], [piece(0, "b", None, '"Oslo"}')]],
            [("a", "look", OSLO)],
            id="the id changes",
        ),
        pytest.param(
            [[piece(0, "a", "look", "")], [piece(0, "b", None, '{"city": ')], [piece(0, "c", None, '"Oslo"}')]],
            [("a", "look", OSLO)],
            id="each piece has an id of its own",
        ),
        pytest.param(
            [[piece(0, "a", "look", '{"city": ')], [piece(0, "b", "look", '"Oslo"}')]],
            [("a", "look", OSLO)],
            id="the id changes, and the name comes again",
        ),
        pytest.param(
            [
                [piece(None, "a", "look", '{"city": ')],
                [piece(None, "b", "look", '{"city": ')],
                [piece(None, "a", None, '"Oslo"}')],
                [piece(None, "b", None, '"Cairo"}')],
            ],
            [("a", "look", OSLO), ("b", "look", CAIRO)],
            id="no index, pieces alternate",
        ),
        pytest.param(
            [[piece(0, "a", "look", OSLO)], [piece(0, "b", "look", CAIRO)], [piece(None, "c", "tell", "")]],
            [("a", "look", OSLO), ("b", "look", CAIRO), ("c", "tell", "")],
            id="all under index 0, each whole",
        ),
        pytest.param(
            [[piece(0, "a", "look", OSLO)], [piece(0, "a", "look", CAIRO)]],
            [("a", "look", OSLO), ("a", "look", CAIRO)],
            id="all under index 0 and one id, each whole",
        ),
        pytest.param(
            [[piece(0, "a", "look", '{"city"')], [piece(0, "a", "look", ': "Oslo"}')], [piece(0, "a", "look", "")]],
            [("a", "look", OSLO)],
            id="id and name in every piece",
        ),
        pytest.param(
            [[piece(0, None, "look", '{"city"')], [piece(0, None, None, ': "Oslo"}')]],
            [(None, "look", OSLO)],
            id="no id",
        ),
        pytest.param(
            [[piece(0, None, "look", OSLO)], [piece(0, None, "look", CAIRO)]],
            [(None, "look", OSLO), (None, "look", CAIRO)],
            id="no id, all under index 0, each whole",
        ),
        pytest.param(
            [
                [piece(None, None, "look", '{"city": '), piece(None, None, "look", '{"city": ')],
                [piece(None, None, None, '"Oslo"}'), piece(None, None, None, '"Cairo"}')],
            ],
            [(None, "look", OSLO), (None, "look", CAIRO)],
            id="neither index nor id, told apart by position",
        ),
        pytest.param(
            [[piece(0, "a", "look", {"city": "Oslo"})]], [("a", "look", {"city": "Oslo"})], id="arguments as an object"
        ),
        pytest.param(
            [[piece(0, "a", "lo", None)], [piece(0, None, "ok", None)], [piece(0, None, None, OSLO)]],
            [("a", "look", OSLO)],
            id="the name in pieces",
        ),
        pytest.param([piece(0, "a", "look", OSLO)], [("a", "look", OSLO)], id="a call that is not in a list"),
    ],
)
def test_how_servers_cut_tool_calls(deltas: list[Any], calls: list[Any]) -> None:
    assert assembled(*deltas) == calls


def test_pieces_are_passed_on_under_one_id_and_number() -> None:
    pieces = CallPieces({"a"})
    shown = [
        pieces.add([one])[0] for one in (piece(0, "a", "look", ""), piece(0, "b", None, OSLO), piece(0, "b", "f", "{}"))
    ]
    first, second = pieces.ids
    assert first != "a", "an earlier call of the run has this id"
    assert [(one["index"], one["id"]) for one in shown] == [(0, first), (0, first), (1, second)]


@given(data=st.data())
def test_calls_come_back_whole_however_they_are_cut(data: st.DataObject) -> None:
    """Each call has an index or an id that tells it apart, as the protocol demands one of them."""
    asked = data.draw(
        st.lists(st.tuples(st.sampled_from(["look", "tell"]), st.sampled_from([OSLO, CAIRO, "{}", ""])), max_size=4)
    )
    with_index, with_id, repeats = data.draw(st.booleans()), data.draw(st.booleans()), data.draw(st.booleans())
    queues = []
    for number, (name, arguments) in enumerate(asked):
        cuts = sorted(data.draw(st.lists(st.integers(0, len(arguments)), max_size=3)))
        texts = [arguments[start:end] for start, end in zip([0, *cuts], [*cuts, len(arguments)], strict=True)]
        index = number if with_index or not with_id else None
        queues.append([
            piece(index, f"call_{number}" if with_id and (repeats or not place or index is None) else None,
                  None if place else name, text)
            for place, text in enumerate(texts)
        ])  # fmt: skip
    deltas: list[list[Any]] = []
    while queues := [queue for queue in queues if queue]:
        deltas.append([data.draw(st.sampled_from(queues)).pop(0)])
    whole = assembled(*deltas)
    assert sorted((name, arguments) for _, name, arguments in whole) == sorted(asked)


def thought(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, **more}


def step(text: str | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "reasoning.text", "index": 0, **({} if text is None else {"text": text}), **more}


ENCRYPTED = {"type": "reasoning.encrypted", "data": "x"}


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        (["think", "ing"], "thinking"),
        (["a", ""], "a"),
        ([[{"type": "text", "text": "four "}], "degrees"], [{"type": "text", "text": "four degrees"}]),
        ([[thought("h")], [thought("m")], "done"], [thought("hm"), {"type": "text", "text": "done"}]),
        ([[step("h")], [step("m")], [step(signature="s")], [ENCRYPTED]], [step("hm", signature="s"), ENCRYPTED]),
        ([[thought("a", signature="s")], [thought("b")]], [thought("a", signature="s"), thought("b")]),
        ([{"a": "x"}, {"a": "y", "b": 1}], {"a": "xy", "b": 1}),
    ],
)
def test_members_that_chat_completions_do_not_know(pieces: list[Any], whole: Any) -> None:
    known = None
    for one in pieces:
        known = merged(known, one)
    assert known == whole
