"""``statepool demo``: a server on this machine's CPU, a load test against it, and a clean end."""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from rich.console import Console

from statepool.cli.failure import CommandError
from statepool.cli.loadtest import exit_code, measure, show
from statepool.cli.options import ByteSize, SomeTime
from statepool.loadtest.options import AlignWorkload, LoadOptions
from statepool.loadtest.thresholds import judge

START_SECONDS = 60.0
STOP_SECONDS = 20.0


def demo(
    *,
    model_config: str = "falcon_h1",
    tp_size: int = 8,
    tp_ranks: str = "0,1",
    num_spec: int = 2,
    block_tokens: int = 64,
    memory: ByteSize = 256 * 2**20,
    duration: SomeTime = 10.0,
    engines: int = 2,
) -> int:
    """Start a server on the CPU with a pool for a real model, load-test it over a Unix socket, and stop it.

    Args:
        model_config: A model's config.json, its folder, or the name of a bundled one.
        tp_size: Tensor-parallel ranks of the model.
        tp_ranks: Ranks that this server holds.
        num_spec: Speculative tokens of a sequence.
        block_tokens: Tokens per block.
        memory: Bytes of each rank's arena.
        duration: How long to measure.
        engines: Simulated engines of the load test.
    """
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="statepool-demo-") as folder:
        sizes = ["--model-config", model_config, "--tp-size", str(tp_size), "--tp-ranks", tp_ranks]
        sizes += ["--num-spec", str(num_spec), "--block-tokens", str(block_tokens), "--memory", str(memory)]
        with _server(Path(folder), sizes) as target:
            console.print(
                f"server: {model_config}, ranks {tp_ranks} of {tp_size}, {target}", highlight=False, soft_wrap=True
            )
            report = measure(_options(target, duration, engines))
        console.print("server: stopped cleanly", highlight=False)
    report.verdicts = judge(report, [])
    show(report)
    return exit_code(report.verdicts)


def _options(target: str, duration: float, engines: int) -> LoadOptions:
    return LoadOptions(
        target=target,
        duration=duration,
        warmup=1.0,
        workload=AlignWorkload(engines=engines, sequences=8, shared_blocks=4, prompt_tokens=64, output_tokens=64),
        rate=0.0,
        processes=1,
        verify=0.25,
        seed=0,
    )


@contextlib.contextmanager
def _server(folder: Path, sizes: list[str]) -> Iterator[str]:
    command = Path(sys.executable).with_name("statepool-server")
    if not command.exists() and shutil.which("statepool-server") is None:
        raise CommandError("the demo starts a server: pip install 'statepool[server]'")
    target = f"unix:{folder / 'statepool.sock'}"
    state_dir = Path(tempfile.mkdtemp(prefix="statepool-demo-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))  # noqa: S108
    arguments = [*sizes, "--listen", target, "--state-dir", str(state_dir), "--log-level", "warning"]
    process = subprocess.Popen([str(command) if command.exists() else "statepool-server", *arguments])  # noqa: S603
    try:
        _wait_until_ready(process, target)
        yield target
    finally:
        code = _stop(process)
        shutil.rmtree(state_dir, ignore_errors=True)
    if code != 0:
        raise CommandError(f"the server ended with exit code {code}")


def _wait_until_ready(process: subprocess.Popen[bytes], target: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with grpc.insecure_channel(target) as channel, contextlib.suppress(grpc.FutureTimeoutError):
            grpc.channel_ready_future(channel).result(timeout=0.5)
            return
    raise CommandError("the server did not start")


def _stop(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
