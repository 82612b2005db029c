"""Builders of calls: pure functions from Python values to a `statepool.rpc.Call` or a stream's messages.

Everything that the sync and the async client have in common is here; they only add the I/O.
"""
