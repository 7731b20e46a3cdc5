"""The tree: carries out the rules on children, changes a running tree, and describes it. Knows no process."""
