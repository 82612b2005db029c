"""Client of statepool, the gRPC service that owns the state-block pool of hybrid and state-space models."""
