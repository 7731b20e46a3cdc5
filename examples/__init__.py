"""Examples. Each runs as it is: `python -m examples.weather`, and so on.

    inline.py        an agent in your own process, without Redis and workers
    structured.py    an answer of a pydantic type
    weather.py       worker processes, a task, and its events
    newsroom.py      a task that awaits child tasks and a person
    web.py           tasks over HTTP, and their events over WebSockets
    repository.py    an agent with tools over real files
    quickstart/      `make demo`: that agent runs in two processes, one of which is killed

With OPENAI_API_KEY in the environment, they call the default model. Without it they play a script, and say so.
"""
