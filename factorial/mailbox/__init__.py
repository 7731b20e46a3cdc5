"""The store of tasks in Redis or Valkey, and the only package that talks to the server.

namespace.py    `Namespace`: a connection to one namespace, checked; its events
visit.py        a short visit to a namespace, for operators and the doctor
operations/     the operations on tasks: each .py next to the .lua files that it runs; `lib/`: what those include
views/          what is stored, read without changing it, and events as they happen
supervisors/    the reports of supervisors, and the orders to them
doctor/         the check of a namespace against its invariants
script.py       loads and runs the Lua scripts
layout.py       whether this release can read what a namespace holds
places.py       the places in which a run can be
keys.py         every key's name, for Python and Lua
transport/      connections to the server
embedded/       a server of our own
"""

from factorial.mailbox.namespace import Namespace

__all__ = ["Namespace"]
