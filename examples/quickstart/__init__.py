"""`make demo`: an agent runs in two processes, one of which is killed. Begin to read at `__main__.py`."""
