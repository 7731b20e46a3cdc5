"""Operating-system processes: both ends of a child, its health, its stacks, signals, and the duties of PID 1."""
