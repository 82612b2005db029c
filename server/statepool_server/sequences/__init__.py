"""Sequences in align mode: block tables, the rules that move states, and engine steps that are applied whole."""
