"""What must be true of a server when everybody has gone: nothing leaks, and what was committed is found."""

from collections.abc import Iterator, Mapping, Sequence

from robustness.cluster import Cluster
from robustness.scenario import NAMESPACE
from service.servers import SIGNS_OF_TROUBLE, until
from statepool import BlockState, Client, Session
from statepool.descriptions import PoolUsage

_BATCH = 256


def audit(cluster: Cluster, certain: Mapping[int, Sequence[bytes]]) -> Iterator[str]:
    """Ends the run's processes, the workers last, and yields what is not as it must be.

    Args:
        cluster: The processes; its schedulers have ended.
        certain: Prefix hashes that must be found, by the incarnation of the server.
    """
    with cluster.client() as client:
        yield from _leaks(client)
        with client.create_session(60.0) as session:
            yield from _lost(session, certain[session.incarnation])
            _evict_all(client, session)
        cluster.end_workers()
        yield from _rest(client)
    yield from _end(cluster)


def _leaks(client: Client) -> Iterator[str]:
    """Waits until the last leases are over and the workers have answered for them."""

    def is_quiet(usage: PoolUsage) -> bool:
        return not (usage.sessions or usage.quarantined_blocks or usage.held_blocks or usage.busy_blocks)

    pool = client.get_pool()
    try:
        until(lambda: is_quiet(client.get_pool().usage), "the pool to be quiet")
    except AssertionError as error:
        yield f"{error}: {client.get_pool().usage}, {client.list_attachments()}"
    usage = client.get_pool().usage
    if usage.free_blocks + usage.evictable_blocks != pool.capacity or usage.sequences:
        yield f"blocks or sequences leak: {usage}"


def _lost(session: Session, certain: Sequence[bytes]) -> Iterator[str]:
    for prefix_hash in certain:
        hit = session.lookup_prefix([prefix_hash], namespace=NAMESPACE)
        if hit is None:
            yield f"the acknowledged commit of {prefix_hash.hex()} is lost"
        else:
            session.free_blocks(hit.block)


def _evict_all(client: Client, session: Session) -> None:
    for page in list(client.list_blocks(states=[BlockState.EVICTABLE])):
        session.evict_blocks(page.blocks)


def _rest(client: Client) -> Iterator[str]:
    """Looks at what is left when there is no committed block, no session and no worker any more."""
    capacity = client.get_pool().capacity
    try:
        until(
            lambda: not client.list_attachments() and client.get_pool().usage.free_blocks == capacity, "an empty pool"
        )
    except AssertionError as error:
        yield f"{error}: {client.get_pool().usage}, {client.list_attachments()}"


def _end(cluster: Cluster) -> Iterator[str]:
    """Drains the server, and reads what everybody had to say."""
    server = cluster.server
    server.terminate()
    code = server.wait()
    if code:
        yield f"the server ended with {code}"
    yield from (f"in the server's log: {line[:2000]}" for line in _troubles(server.log))
    for name, log in cluster.logs().items():
        if "Traceback" in log:
            yield f"in the log of {name}: {log[-2000:]}"


def _troubles(log: str) -> Iterator[str]:
    return (line for line in log.splitlines() if any(sign in line for sign in SIGNS_OF_TROUBLE))
