"""The speeds that we claim, measured: `python -m benchmarks`.

Machines differ, so every target is a ratio to a yardstick of the same run: the rate of sequential PINGs that redis-py
sends to the same server on one connection. Each file measures one subject, except for the two shared ones:

    yardstick.py    the PING
    no_op.py        the cost of a task that does nothing: round trips, bytes, tasks per second
    latency.py      the time from enqueue to start on an idle worker
    turns.py        the cost of a turn: round trips by number of tools, bytes by length of the conversation
    stage.py        (shared) the server, a worker in this process, a client with a connection of its own
    report.py       (shared) the table and its verdict
"""
