"""A running supervisor: puts tree, processes, mailbox, orders and signals together."""
