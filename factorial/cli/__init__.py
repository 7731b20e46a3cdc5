"""The commands `factorial` and `python -m factorial.supervisor`. One file per group of verbs.

A verb is a `common.Verb`. Each module of this package lists its verbs as `VERBS`, and `verbs.find_verbs` finds them: a
new verb is a new file, or a new entry in one, and no other change. All modules are imported to list the verbs, so a
module imports what a verb needs within the function that runs it.
"""
