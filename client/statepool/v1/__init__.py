"""The wire API, generated from ``protos/statepool/v1`` by ``make generate``; `statepool.Client` is how to use it."""
