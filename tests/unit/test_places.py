"""The table of places, and what the scripts get of it. Pure."""

from factorial.mailbox.keys import KINDS, lua_prelude
from factorial.mailbox.places import BY_KIND, PLACES, lua_places
from factorial.task import TaskStatus


def test_every_status_has_a_place() -> None:
    """But for those that no task ever has, which are there for programs of 0.1.x."""
    never = {TaskStatus.ACTIVE, TaskStatus.PAUSED}
    assert {status for place in PLACES for status in place.statuses} == set(TaskStatus) - never


def test_a_suspect_is_in_the_queue_of_suspects_and_no_other() -> None:
    assert [place.kind for place in PLACES if place.admits("queued", suspect=True)] == ["suspects"]
    assert [place.kind for place in PLACES if place.admits("queued", suspect=False)] == ["ready", "throttled"]
    assert [place.kind for place in PLACES if place.admits("backoff", suspect=True)] == ["due"]


def test_the_key_of_a_place_is_named_by_what_is_known_of_the_run() -> None:
    assert BY_KIND["ready"].name(agent="a", owner="o") == "a"
    assert BY_KIND["throttled"].name(agent="a", owner="o") == "a:o"
    assert BY_KIND["held"].name(agent="a", process="p") == "p"
    assert BY_KIND["ended"].name(agent="a", status="failed") == "a:failed"


def test_a_script_gets_the_places_and_the_keys_that_it_mentions() -> None:
    assert lua_places("return 1") == lua_prelude("return 1") == ""
    assert "{'due', 'ZCARD'}" in lua_places("for _, place in ipairs(PLACES_OF_AGENT)")
    removed = lua_prelude("redis.call('DEL', keys_of_active_run(id))")
    assert all((f"'{kind}:'" in removed) == (not about.kept) for kind, about in KINDS.items() if about.is_of_run)
