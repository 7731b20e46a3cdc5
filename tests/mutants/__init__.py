"""Hand-made faults, and the tests that have to notice them: `make mutants`."""
