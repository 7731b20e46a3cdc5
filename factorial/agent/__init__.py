"""Agents: what a user defines (`agent.py`), one turn (`turn.py`), and the life of a run (`run.py`)."""
