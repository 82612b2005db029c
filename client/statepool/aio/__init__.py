"""The client for asyncio: the same methods as `statepool.sync`, awaited."""
