"""How long state machines run."""

from hypothesis import HealthCheck, settings


def machine_settings(steps: int) -> settings:
    """Makes the settings of a state machine: examples by the profile, however long they take.

    Args:
        steps: Most steps of an example.
    """
    return settings(
        max_examples=2 * settings().max_examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
