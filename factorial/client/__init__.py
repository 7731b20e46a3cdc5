"""What the methods of `Orchestrator` call: options, connections, tasks, messages to tasks, and subscriptions."""
