"""Guarantee: a scheduler that drives sequences over a Schedule stream sees the reference engine's align mode."""
