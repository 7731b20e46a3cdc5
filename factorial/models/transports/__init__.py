"""The ways to a model server."""
