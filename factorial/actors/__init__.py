"""The actors of a worker process: they take runs from the mailbox, keep the process's lease, and tend the queues."""
