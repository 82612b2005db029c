"""The statepool service: one process, one pool, one model; one or more tensor-parallel ranks."""
