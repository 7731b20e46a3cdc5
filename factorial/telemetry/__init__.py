"""What the system reports about itself: the log of tasks."""
