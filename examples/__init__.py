"""Examples, each of which runs as it is: `python -m examples.weather`, and so on.

    inline.py        an agent in your own process: no Redis, no workers
    structured.py    an answer of a pydantic type
    weather.py       worker processes, a task, and its events
    repository.py    an agent with tools over real files
    quickstart/      `make demo`: that agent at work, and one of its processes killed on the way

With OPENAI_API_KEY in the environment they ask the default model. Without it they play a script, and say so.
"""
