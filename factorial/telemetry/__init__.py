"""What the system reports about itself: the setup of its log on standard error, and the log of tasks."""
