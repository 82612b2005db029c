"""Counts of what a pool has done; they decide nothing and are no part of its state."""

from dataclasses import dataclass


@dataclass(slots=True)
class Tally:
    """Numbers since the pool was made; a server that goes on with another's state counts from 0."""

    allocated_blocks: int = 0
    """Blocks that were handed out."""
    evicted_blocks: int = 0
    """Committed blocks that made room for others."""
    unlisted_blocks: int = 0
    """Committed blocks that were taken out of the prefix index on request."""
    commits: int = 0
    """Blocks that became findable."""
    duplicate_commits: int = 0
    """Blocks whose hash another block held already."""
    lookups: int = 0
    """Searches by LookupPrefix."""
    lookup_hits: int = 0
    """How many of them found a block."""
    admissions: int = 0
    """Sequences that began, imported ones left out."""
    admission_hits: int = 0
    """How many of them began with a state that was found."""
    imports: int = 0
    """Sequences that began with an imported state."""
    finishes: int = 0
    """Sequences that were finished by their owner."""
    prompt_tokens: int = 0
    """Tokens of the prompts of `admissions`."""
    hit_tokens: int = 0
    """How many of them need not be computed."""
    steady_steps: int = 0
    """Engine steps in which each running sequence decoded one token, and nothing else happened."""
    planned_steps: int = 0
    """All other engine steps."""
    opened_sessions: int = 0
    """Sessions that were opened."""
    taken_over_sessions: int = 0
    """Sessions that were taken over."""
    deleted_sessions: int = 0
    """Sessions that their owner ended."""
    expired_sessions: int = 0
    """Sessions whose lease ran out."""
