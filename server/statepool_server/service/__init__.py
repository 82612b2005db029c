"""The RPCs: a handler is check, domain call, answer; what waits, repeats or copies has a module of its own."""
