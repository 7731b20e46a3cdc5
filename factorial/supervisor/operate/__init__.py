"""What an operator can do with a running system: the verbs, carried out on the tree or sent from anywhere."""
