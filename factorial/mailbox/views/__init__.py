"""Reads what is stored, without changing it."""
