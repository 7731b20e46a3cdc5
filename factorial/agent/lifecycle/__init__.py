"""The life of a run, from the claim to its end."""
