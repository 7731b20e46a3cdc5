"""Random histories of the mailbox protocol, step by step against what must be true (machine.py, truth.py).

The operations and the scripts are real. The server is fakeredis, and its time is virtual; tests/model/
test_model_on_valkey.py plays such histories on a real one. They are the same histories in every run.
"""

from tests.model.machine import play
from tests.model.servers import FakeServer, virtual_time


def test_random_histories_on_fakeredis() -> None:
    with virtual_time():
        figures = play(FakeServer(), histories=45, steps=60, derandomize=True)
    assert figures["commits"] > 200 and figures["duplicates refused"] > 100 and figures["zombies' writes refused"] > 10
