"""`embedded:DIR`: a Valkey that Factorial starts itself, with its data in a directory.

share.py     which process starts and stops it: the locks
valkey.py    the Valkey process: its files, its start and its stop
"""
