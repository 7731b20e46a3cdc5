"""What a worker process is made of.

worker_process   the actors of one process, and the order in which they start and stop
control          waits for wake tokens and signals
worker           claims runs, as many as it has slots
durable_host     the host of one claimed run; agent and mailbox meet here only
interruption     what was asked of an activation from outside; pure
journal          the recorded steps of the present turn
outbox           events and steps that were not sent yet
commits          outcomes as commits
heartbeat        the lease of the process
inventory        compares what the process executes with what it holds
maintenance      reclaims, queues what is due, removes what has expired
actor            a mailbox, and one message at a time
"""
