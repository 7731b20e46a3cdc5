"""What we claim about speed, measured again: `python -m benchmarks`.

Machines differ, so every target is a ratio to a yardstick of the same run: how often redis-py can PING the same server
on one held connection, one after the other. Each file but these two measures one subject:

    yardstick.py    the PING
    no_op.py        what a task costs that does nothing: round trips, bytes, tasks per second
    latency.py      from enqueue to start on an idle worker
    turns.py        what a turn costs: round trips by number of tools, bytes by length of the conversation
    stage.py        (shared) the server, a worker in this process, a client with a connection of its own
    report.py       (shared) the table and its verdict
"""
