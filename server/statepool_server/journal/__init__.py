"""What happened, in shared memory: it outlives the process, so that another can go on where it ended."""
