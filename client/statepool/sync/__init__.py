"""The client with blocking calls."""
