"""Guarantee: a call, its answer in the server and the copies made for it are one trace over both processes."""

import contextvars
import json
import threading
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from service.servers import BLOCK_TOKENS, CAPACITY, IMAGE_BYTES, Server, until
from statepool import (
    ALL_RUNNING,
    Admission,
    AsyncClient,
    Commits,
    PoolExhaustedError,
    Schedules,
    StepOutOfOrderError,
)
from tracing.receiver import ReceivedSpan, Receiver

RANKS = 2
SCHEDULE = "statepool.v1.SequenceService/Schedule"


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Keeps the spans of this process, which is a program that traces."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


class Root:
    """A span of the program, and what has become of it."""

    def __init__(self, exporter: InMemorySpanExporter, receiver: Receiver, span: trace.Span) -> None:
        self._exporter = exporter
        self._receiver = receiver
        self.trace_id = f"{span.get_span_context().trace_id:032x}"
        self.span_id = f"{span.get_span_context().span_id:016x}"

    def calls(self) -> list[ReadableSpan]:
        """Lists the spans of the client."""
        spans = self._exporter.get_finished_spans()
        return [
            span
            for span in spans
            if span.kind is SpanKind.CLIENT and span.context and f"{span.context.trace_id:032x}" == self.trace_id
        ]

    def received(self, count: int) -> list[ReceivedSpan]:
        """Waits for so many spans of the server."""
        until(lambda: len(self._receiver.of(self.trace_id)) >= count, f"{count} spans")
        return self._receiver.of(self.trace_id)


@pytest.fixture
def root(exporter: InMemorySpanExporter, receiver: Receiver) -> Iterator[Root]:
    """Puts a test into a span."""
    with trace.get_tracer("test").start_as_current_span("program") as span:
        yield Root(exporter, receiver, span)


def check_chain(root: Root, call: ReadableSpan, served: ReceivedSpan) -> None:
    """Checks that a call is the program's, and its answer the call's."""
    assert call.parent is not None
    assert call.context is not None
    assert f"{call.parent.span_id:016x}" == root.span_id
    assert served.parent_id == f"{call.context.span_id:016x}"
    assert (served.name, served.service) == (call.name, "statepool-server")


def test_call_and_copy(server: Server, root: Root) -> None:
    """A copy is a child of the call that asked for it, which is a child of the client's."""
    with server.client() as client, client.create_session(60.0) as session:
        blocks = session.allocate_blocks(2, zero=False)
        session.copy_blocks(src=blocks[:1], dst=blocks[1:], token_bias=0)

        received = {span.name: span for span in root.received(4)}

    calls = {call.name: call for call in root.calls()}
    name = "statepool.v1.BlockService/CopyBlocks"
    check_chain(root, calls[name], received[name])
    assert received["copy"].parent_id == received[name].span_id
    assert received["copy"].attributes["statepool.bytes"] == RANKS * 384
    assert received[name].start_ns <= received["copy"].start_ns <= received["copy"].end_ns
    assert received[name].attributes["rpc.method"] == "CopyBlocks"


def test_steps_of_a_stream(server: Server, root: Root) -> None:
    """Every step of a stream is a span of its own, with its copies as children."""
    with server.client() as client, client.create_session(60.0) as session, session.scheduler() as scheduler:
        scheduler.step(admit=[Admission(1, 2 * BLOCK_TOKENS)], schedule=Schedules([1], BLOCK_TOKENS))
        scheduler.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))
        with pytest.raises(StepOutOfOrderError):
            scheduler.step(schedule=Schedules(ALL_RUNNING))
        scheduler.step(finish=[1])
        root.received(7)

    steps = [call for call in root.calls() if call.name == SCHEDULE]
    served = [span for span in root.received(7) if span.name == SCHEDULE]
    assert len(steps) == len(served) == 4
    for call, answer in zip(steps, served, strict=True):
        check_chain(root, call, answer)
    assert [step.status.is_ok for step in steps] == [True, True, False, True]
    copies = [span.parent_id for span in root.received(7) if span.name == "copy"]
    assert copies == [served[0].span_id, served[1].span_id]  # zeroed, then moved over the boundary


def test_byte_streams(server: Server, root: Root) -> None:
    """Every chunk of a stream is a child of it."""
    with server.client() as client, client.create_session(60.0) as session:
        blocks = session.allocate_blocks(1, zero=False)
        session.write_blocks(blocks, bytes(IMAGE_BYTES))
        list(session.read_blocks(blocks))
        received = root.received(12)

    for method, kind in (("ReadBlocks", "read"), ("WriteBlocks", "write")):
        (served,) = (span for span in received if span.name.endswith(method))
        (call,) = (call for call in root.calls() if call.name == served.name)
        check_chain(root, call, served)
        assert [span.parent_id for span in received if span.name == kind] == [served.span_id] * 4


async def test_async_client(server: Server, root: Root) -> None:
    """The client of asyncio traces as well, and what fails is an error on both sides."""
    async with AsyncClient(server.target, timeout=60.0) as client, await client.create_session(60.0) as session:
        with pytest.raises(PoolExhaustedError):
            await session.allocate_blocks(CAPACITY + 1)
        received = root.received(2)

    (served,) = (span for span in received if span.name.endswith("AllocateBlocks"))
    (call,) = (call for call in root.calls() if call.name == served.name)
    check_chain(root, call, served)
    assert not call.status.is_ok
    assert call.attributes is not None
    assert call.attributes["error.type"] == "POOL_EXHAUSTED"
    assert (served.is_error, served.attributes["rpc.grpc.status_code"]) == (True, 8)


def test_waiting(server: Server, root: Root) -> None:
    """The zeroing for a call that waited is its own, whoever freed the blocks."""
    with server.client() as client, client.create_session(60.0) as session:
        blocks = session.allocate_blocks(CAPACITY, zero=False)
        root.received(2)
        wait = contextvars.copy_context().run  # a thread begins without a span
        waiter = threading.Thread(target=wait, args=(lambda: session.allocate_blocks(1, max_wait=30.0),))
        waiter.start()
        until(lambda: client.get_pool().usage.waiting_allocations == 1, "the call to wait")
        session.free_blocks(blocks)
        waiter.join()
        until(lambda: any(span.name == "copy" for span in root.received(5)), "the zeroing")
        received = root.received(5)

    (zeroing,) = (span for span in received if span.name == "copy")
    (parent,) = (span for span in received if span.span_id == zeroing.parent_id)
    assert parent.name.endswith("AllocateBlocks")


def test_logs(server: Server, root: Root) -> None:
    """A line of a call carries its trace, its session and its request id."""
    with server.client() as client, client.create_session(60.0) as session:
        session.allocate_blocks(1, zero=False)
        root.received(2)

    lines = [json.loads(line) for line in server.log.splitlines()]
    (line,) = (
        line
        for line in lines
        if line.get("method", "").endswith("AllocateBlocks") and line.get("trace_id") == root.trace_id
    )
    assert line["session_id"] == session.session_id
    assert line["request_id"]


def test_untraced_programs(server: Server, exporter: InMemorySpanExporter) -> None:
    """Outside of any span of the program the client begins none."""
    before = len(exporter.get_finished_spans())
    with server.client() as client:
        client.get_pool()

    assert len(exporter.get_finished_spans()) == before
