"""What the system reports of itself."""
