"""A running supervisor: puts the tree, processes, the namespace, orders and signals together."""
