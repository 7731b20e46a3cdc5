"""What is stored, read without changing it."""
