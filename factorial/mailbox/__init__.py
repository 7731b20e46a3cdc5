"""The mailboxes in Redis: the only package that talks to the server.

mailbox.py     the door: connect, check, subscribe
enqueue claim step commit post lease tend read     the operations: each .py beside the .lua file that it runs
subscription.py     events as they happen, and again
connect.py     the connections below; embedded.py a server of our own
"""

from factorial.mailbox.namespace import Namespace

__all__ = ["Namespace"]
