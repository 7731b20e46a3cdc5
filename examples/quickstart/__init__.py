"""`make demo`: an agent at work in two processes, one of which is killed on the way. `__main__.py` tells the story."""
