"""Random histories of the mailbox protocol (machine.py, truth.py) on a real Valkey: other ones in every run.

The operations, the scripts and the server are real. Only time is not waited for: what is stored is moved instead.
`FACTORIAL_CHAOS=long` plays for some minutes. A failure is printed as a history, and shrunk to a short one.
"""

from tests.chaos.figures import fault, long_or_short
from tests.model.machine import play
from tests.model.servers import RealServer
from tests.valkey import ValkeyServer


def test_random_histories_on_valkey(own_valkey: ValkeyServer) -> None:
    own_valkey.start()
    figures = play(RealServer(own_valkey), histories=long_or_short(1200, 20), steps=60, check_every=5)
    assert figures["commits"] > figures["histories"]
    fault("random histories on Valkey", **{name.replace(" ", "_").replace("'", ""): n for name, n in figures.items()})
