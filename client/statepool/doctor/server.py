"""Checks of what the server tells about itself."""

from collections.abc import Iterator
from importlib.metadata import version

from statepool.doctor.deployment import Deployment
from statepool.doctor.findings import Finding, bad, doubtful, good
from statepool.errors import PeerUntrustedError, RoleForbiddenError
from statepool.shapes.conv_layout import CONV_LAYOUT_VARIABLES, conv_layout_of_environment


def check_health(deployment: Deployment) -> Iterator[Finding]:
    """Checks that the server serves."""
    if deployment.health == "SERVING":
        yield good("health", f"{deployment.target}: SERVING")
    elif deployment.health == "NOT_SERVING":
        yield bad(
            "health",
            f"{deployment.target}: NOT_SERVING: it drains, or a part of it has died",
            "look for `draining` or `background work died` in its log; restart it",
        )
    else:
        yield bad(
            "health",
            f"{deployment.target}: {deployment.health}: no server answers",
            "start the server; the last line of its log says why it ended",
        )


def check_caller(deployment: Deployment) -> Iterator[Finding]:
    """Checks that the server knows who asks, where it tells everybody that it serves."""
    if deployment.health != "SERVING" or not isinstance(deployment.refusal, PeerUntrustedError | RoleForbiddenError):
        return
    yield bad(
        "caller",
        f"{deployment.target}: {deployment.refusal.message}",
        "show a certificate that names a role (--cert, --key), or a token of its access file (--token-file)",
    )


def check_versions(deployment: Deployment) -> Iterator[Finding]:
    """Checks that client and server belong together: below 1.0, minor versions may differ in the API."""
    if deployment.answers is None:
        return
    ours, theirs = version("statepool"), deployment.answers[0].version
    detail = f"client {ours}, server {theirs}"
    if ours == theirs:
        yield good("versions", detail)
    elif _compatible_series(ours) == _compatible_series(theirs):
        yield doubtful("versions", detail, "bring both to the newer one when you can")
    else:
        yield bad("versions", f"{detail}: the API may differ", f"pip install 'statepool=={theirs}' here")


def check_layout(deployment: Deployment) -> Iterator[Finding]:
    """Checks that an engine in this environment would lay conv states out as the pool does."""
    if deployment.pool is None:
        return
    pools = deployment.pool.layout.block.conv_layout
    try:
        ours, name = conv_layout_of_environment()
    except ValueError as error:
        yield bad("conv layout", str(error), f"set it to {pools}, which the pool has")
        return
    if ours == pools:
        yield good("conv layout", f"{pools}, {'by ' + name if name else 'the default'} here as well")
        return
    judge = bad if name else doubtful  # without a variable, this may be no engine's environment
    yield judge(
        "conv layout",
        f"the pool's is {pools}; an engine in this environment has {ours}, {'by ' + name if name else 'the default'}",
        f"set {name or CONV_LAYOUT_VARIABLES[-1]}={pools} here, or --conv-layout {ours} for the server",
    )


def check_quarantine(deployment: Deployment) -> Iterator[Finding]:
    """Checks for blocks that wait for a worker's word."""
    if deployment.pool is None:
        return
    if blocks := deployment.pool.usage.quarantined_blocks:
        yield doubtful(
            "quarantine",
            f"{blocks:,} blocks of lost sessions wait for attached workers",
            "end the worker that stands still; if it writes no more for sure, Client.release_quarantine()",
        )
    else:
        yield good("quarantine", "empty")


def _compatible_series(text: str) -> tuple[str, ...]:
    parts = text.split(".")
    return tuple(parts[:2] if parts[0] == "0" else parts[:1])
