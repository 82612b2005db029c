"""Guarantee: a server starts as it was told or says in one line why not, and stops without losing what it had begun."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.conftest import plain_stubs
from service.raw import OpenWrite, busy_blocks, chunk_of, ref_of, refs, refusal_of
from service.servers import CAPACITY, COMMAND, DEADLINE_SECONDS, Servers, arguments, until, write_model
from statepool import Client, DrainingError
from statepool.cli.connect import Connection
from statepool.mounts import Mount
from statepool.v1 import block_pb2 as pb
from statepool.v1 import pool_pb2
from statepool_server.cli.command import execute
from statepool_server.config import unknown_variables


@dataclass(frozen=True)
class Ended:
    """What became of a command line."""

    code: int
    """Exit code."""
    out: str
    """Standard output."""
    error: str
    """Standard error."""


@pytest.fixture
def start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs the command with a test's flags over those with which a server would start; it must end by itself."""

    def run(*flags: str, last: tuple[str, ...] = ()) -> Ended:
        base = arguments(write_model(tmp_path), f"unix:{tmp_path / 's.sock'}", tmp_path / "state", *flags)
        code = execute([*base, *last])
        out, error = capfd.readouterr()
        return Ended(code, out, error)

    return run


def test_drain_refuses_the_waiting_and_finishes_the_running(servers: Servers) -> None:
    """On SIGTERM the server is not healthy, who waits is told to go, an open write ends well, and nothing is left."""
    server = servers.start("--drain-timeout", "30s").wait_until_ready()
    with server.client() as client, plain_stubs(server) as stubs, grpc.insecure_channel(server.target) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE_SECONDS)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        session = client.create_session(60.0)
        blocks = session.allocate_blocks(CAPACITY)
        stream = OpenWrite(stubs, pb.WriteBlocksHeader(session=ref_of(session), blocks=refs(blocks[:1])))
        until(lambda: busy_blocks(stubs) == 1, "the stream to pin its block")
        request = pb.AllocateBlocksRequest(session=ref_of(session), count=1, max_wait=Duration(seconds=600))
        waiting = stubs.blocks.AllocateBlocks.future(request)
        usage = stubs.pool.GetPool
        until(lambda: usage(pool_pb2.GetPoolRequest()).pool.usage.waiting_allocations == 1, "the call to wait")

        server.terminate()

        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        refusal = refusal_of(lambda: waiting.result(DEADLINE_SECONDS))
        stream.send(chunk_of(b"last words"))
        assert stream.finish().written_bytes == 10
        assert isinstance(refusal, DrainingError)
        assert refusal.retry_after is not None
    server.stop()
    assert not server.socket.exists()


@pytest.mark.parametrize(("flags", "is_kept"), [((), True), (("--no-recovery", ""), False)])
def test_what_is_left_behind(servers: Servers, flags: tuple[str, ...], is_kept: bool) -> None:
    """A server that was stopped leaves memory and journal to the next one, unless it was told not to."""
    server = servers.start(*flags).wait_until_ready()

    server.stop()

    left = {path.suffix for path in server.state_dir.iterdir()}
    assert left == ({".arena", ".bin", ".log", ""} if is_kept else {""})


def test_no_torch_in_the_process(servers: Servers) -> None:
    """A server of host memory does its work without torch, which would cost it a second and 200 MB."""
    server = servers.start().wait_until_ready()
    with server.client() as client, client.create_session(60.0) as session:
        blocks = session.allocate_blocks(4)
        session.copy_blocks(src=blocks[:2], dst=blocks[2:], token_bias=0)

    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flag", "words"), [("--listen", "another server answers there"), ("--state-dir", "another server uses it")]
)
def test_second_server_is_refused(servers: Servers, tmp_path: Path, flag: str, words: str) -> None:
    """Neither the socket nor the folder of a running server is taken from it."""
    server = servers.shared()
    theirs = {"--listen": server.target, "--state-dir": str(server.state_dir)}[flag]
    mine = arguments(write_model(tmp_path), f"unix:{tmp_path / 's.sock'}", tmp_path / "state", flag, theirs)

    result = subprocess.run([COMMAND, *mine], capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)

    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert words in result.stderr
    with server.client() as client:
        assert client.get_pool().capacity == CAPACITY


def test_socket_of_a_dead_server_is_taken_over(servers: Servers) -> None:
    """What a killed server left behind, socket, arenas and lock, does not hinder the next one."""
    dead = servers.start("--no-recovery", "").wait_until_ready()
    dead.process.kill()
    dead.wait()

    heir = servers.start("--no-recovery", "", "--state-dir", str(dead.state_dir), listen=dead.target).wait_until_ready()

    with heir.client() as client:
        assert client.get_pool().usage.free_blocks == CAPACITY
    heir.stop()


def test_loopback_tcp_is_served_until_interrupted(servers: Servers) -> None:
    """A server listens on a loopback host as well, and tells a port that it found itself; SIGINT ends it as SIGTERM."""
    server = servers.start("--insecure-loopback", "", listen="127.0.0.1:0")
    until(lambda: '"serving"' in server.log, "the server to serve")
    (address,) = json.loads(server.log.splitlines()[-1])["addresses"]
    with Client(address) as client:
        client.create_session(60.0).allocate_blocks(1)

        server.terminate(signal.SIGINT)

        server.stop()


def test_memory_on_a_disk(servers: Servers, tmp_path: Path) -> None:
    """A server whose states would be written to a disk says so, and another one does not."""
    server = servers.start("--state-dir", str(tmp_path / "state")).wait_until_ready()

    mount = Mount.of(tmp_path.stat().st_dev, "self")
    assert ("not on tmpfs" in server.log) == (mount is None or mount.kind != "tmpfs")
    assert "not on tmpfs" not in servers.shared().log


def test_a_start_is_ended(servers: Servers) -> None:
    """A server that takes its memory says so, and ends when it is told to, with what was there before it."""
    server = servers.start(environment={"STATEPOOL_FAILPOINTS": "start=1*stop"})
    stat = Path(f"/proc/{server.process.pid}/stat")
    until(lambda: stat.read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T", "the server to stand still")

    server.terminate()
    server.process.send_signal(signal.SIGCONT)

    assert server.wait() == 0
    told = [json.loads(line) for line in server.log.splitlines()]
    assert [line["event"] for line in told] == ["taking memory", "stopped before it served"]
    assert told[0]["size"] == "34KiB"
    assert {path.name for path in server.state_dir.iterdir()} == {"lock"}


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_reader_of_the_log_goes_away(tmp_path: Path, log_format: str) -> None:
    """A log that nobody reads any more fails neither a call nor the end: what would be logged is dropped."""
    target = f"unix:{tmp_path / 's.sock'}"
    loud = ("--log-level", "debug", "--log-format", log_format)
    command = [str(COMMAND), *arguments(write_model(tmp_path), target, tmp_path / "state", *loud)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            assert any("serving" in line for line in server.stderr)
            server.stderr.close()
            with Client(target, timeout=DEADLINE_SECONDS) as client:
                client.create_session(60.0).allocate_blocks(1)

            server.terminate()

            assert server.wait(DEADLINE_SECONDS) == 0
        finally:
            server.kill()


BAD_SETTINGS: dict[str, tuple[list[str], str]] = {
    "memory and blocks": (["--memory", "1MiB"], "exactly one of blocks and memory"),
    "plain text unasked": (["--listen", "127.0.0.1:50051"], "insecure-loopback"),
    "plain text to the network": (["--listen", "0.0.0.0:50051", "--insecure-loopback", ""], "loopback hosts only"),
    "plain text for operators": (["--admin-listen", "127.0.0.1:50051"], "insecure-loopback"),
    "plain metrics to the network": (["--metrics-listen", "0.0.0.0:0"], "insecure-metrics"),
    "plain text from afar": (["--allow-peer", "10.0.0.1:50051"], "beyond this machine"),
    "a token in plain text": (["--peer-token-file", "/nonexistent/token"], "over TLS only"),
    "no such authority": (["--peer-ca", "/nonexistent/ca.pem"], "--peer-ca /nonexistent/ca.pem: No such file"),
    "certificate without a key": (["--tls-cert", "/nonexistent/cert.pem"], "together"),
    "no such certificate": (
        ["--tls-cert", "/nonexistent/c", "--tls-key", "/nonexistent/k", "--tls-client-ca", "/nonexistent/ca"],
        "--tls-cert /nonexistent/c: No such file",
    ),
    "nobody can be known": (["--tls-cert", "/nonexistent/c", "--tls-key", "/nonexistent/k"], "give one"),
    "no such role": (["--local-roles", "root"], "'root' is no role"),
    "no such access file": (
        ["--access", "/nonexistent/access.toml"],
        "--access /nonexistent/access.toml: No such file",
    ),
    "no such configuration": (["--config", "/nonexistent/s.toml"], "--config /nonexistent/s.toml: No such file"),
    "no authority": (["--peer-ca", __file__], "holds no certificate in PEM"),
    "no address": (["--listen", "nonsense"], "neither unix:PATH nor HOST:PORT"),
    "no such model": (["--model-config", "/nonexistent/config.json"], "/nonexistent/config.json"),
    "no such rank": (["--tp-ranks", "0,2"], "tp-ranks"),
    "no ranks": (["--tp-ranks", "a"], "tp-ranks"),
    "too many blocks": (["--blocks", "2000000000"], "are available"),
    "no cuda": (["--device", "cuda:99"], "cuda:99"),
    "no such device": (["--device", "tpu"], "cpu, cuda:N"),
    "zero blocks": (["--blocks", "0"], "blocks"),
    "a range of ranks": (["--tp-ranks", "0-1"], "--tp-ranks: '0-1' is no list of ranks"),
    "nothing is compared": (["--scrub-rate", "0"], '"0" for --scrub-rate'),
    "everybody stands still": (["--stall-timeout", "0"], "for --stall-timeout"),
    "every copy stands still": (["--copy-stall-timeout", "0"], "for --copy-stall-timeout"),
    "nobody can attach": (["--attach-timeout", "0"], "for --attach-timeout"),
    "two listeners at a socket": (
        ["--listen", "unix:/tmp/one", "--admin-listen", "unix:///tmp/one"],
        "--listen and --admin-listen name the same address: /tmp/one",
    ),
    "two listeners at a port": (
        ["--listen", "127.0.0.1:7", "--insecure-loopback", "", "--metrics-listen", "127.0.0.1:7"],
        "--listen and --metrics-listen name the same address: 127.0.0.1:7",
    ),
    "a list in one address": (["--listen", "127.0.0.1:7,127.0.0.1:8"], "neither unix:PATH nor HOST:PORT"),
    "a model that cannot be divided": (
        ["--model-config", "mamba2", "--tp-size", "7"],
        "model-config mamba2: num_heads: 128 is not divisible by 7",
    ),
    "ttl bounds": (["--min-ttl", "2s", "--max-ttl", "1s"], "min-ttl"),
    "large chunks": (["--max-chunk-bytes", "16MiB"], "max-chunk-bytes"),
    "unknown flag": (["--no-such-flag", "1"], "no-such-flag"),
    "unknown engine": (["--copy-engine", "warp"], "warp"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_setting_is_one_line(start: Callable[..., Ended], name: str) -> None:
    """A server that cannot be started says why in one line that names the setting, and exits with 1 or 2."""
    changes, words = BAD_SETTINGS[name]

    ended = start(*changes, "--log-level", "error")

    assert ended.code in (1, 2)
    assert ended.out == ""
    assert len(ended.error.splitlines()) == 1
    assert words in ended.error


def test_engine_that_cannot_copy_leaves_nothing_behind(tmp_path: Path) -> None:
    """Compiled kernels cannot copy host memory: that is said in one line, and the memory is given back."""
    state_dir = tmp_path / "state"
    flags = arguments(write_model(tmp_path), f"unix:{tmp_path / 's.sock'}", state_dir, "--copy-engine", "triton")
    env = os.environ | {"TRITON_INTERPRET": "0"}

    result = subprocess.run(
        [COMMAND, *flags], env=env, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )

    assert result.returncode == 1
    assert "the triton engine copies device memory, the arena is on cpu" in result.stderr.splitlines()[-1]
    assert [path.name for path in state_dir.iterdir()] == ["lock"]


def test_too_little_memory_is_told_with_numbers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Memory for less than two blocks is refused with the bytes that there are and that a block needs."""
    code = execute(["--model-config", str(write_model(tmp_path)), "--memory", "1KiB", "--listen", f"unix:{tmp_path}/s"])

    assert code == 1
    assert "1024 bytes hold 1 blocks of 1024 bytes" in capfd.readouterr().err


@pytest.mark.parametrize(("text", "words"), [("block-tokns = 16\n", "'block-tokns'"), ("blocks =\n", "Invalid value")])
def test_bad_file_is_refused(tmp_path: Path, start: Callable[..., Ended], text: str, words: str) -> None:
    """A misspelt key of the configuration file, or what is no TOML, is an error that names it and the file."""
    path = tmp_path / "server.toml"
    path.write_text(text, encoding="utf-8")

    ended = start("--config", str(path))

    assert (ended.code, len(ended.error.splitlines())) == (1, 1)
    assert f"--config {path}: " in ended.error
    assert words in ended.error


def test_no_model_is_told_as_such(capfd: pytest.CaptureFixture[str]) -> None:
    """Without what every server needs, the flag is named."""
    assert execute([]) == 2
    assert capfd.readouterr().err == "statepool-server: --model-config is required\n"


def test_an_install_without_the_server_says_what_to_install() -> None:
    """Without the extra's libraries the command names the extra instead of showing a traceback."""
    for name in ("cyclopts", "structlog"):
        code = f"import sys\nsys.modules[{name!r}] = None\nfrom statepool_server.cli import main\nmain()"

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

        assert done.returncode == 2
        assert done.stderr == "statepool-server: the server is an extra: pip install 'statepool[server]'\n"


def test_variables_without_a_setting() -> None:
    """A variable that no setting has is found, with what it resembles; clients' and Kubernetes' are others'."""
    clients = {f"STATEPOOL_{each.name.upper()}" for each in fields(Connection)}
    others = {"STATEPOOL_PORT", "STATEPOOL_PORT_50051_TCP_ADDR", "STATEPOOL_SERVICE_HOST", "STATEPOOL_CONFIG", "HOME"}
    unknown = {"STATEPOOL_NO_RECOVERY": "STATEPOOL_RECOVERY", "STATEPOOL_BLOCK_TOKNS": "STATEPOOL_BLOCK_TOKENS"}

    assert unknown_variables({"STATEPOOL_BLOCKS", *clients, *others, *unknown}) == unknown


def test_variable_without_a_setting_is_told(servers: Servers) -> None:
    """A variable that looks like a setting and is none is told in the log."""
    server = servers.start(environment={"STATEPOOL_NO_RECOVERY": "1"}).wait_until_ready()

    (told,) = [line for line in map(json.loads, server.log.splitlines()) if "variable" in line]
    assert (told["level"], told["variable"]) == ("warning", "STATEPOOL_NO_RECOVERY")
    server.stop()


def test_printed_config_feeds_back(
    tmp_path: Path, start: Callable[..., Ended], capfd: pytest.CaptureFixture[str]
) -> None:
    """What --print-config prints is a configuration file that means the same."""
    path = tmp_path / "server.toml"
    first = start("--tp-ranks", "1", "--stall-timeout", "250ms", last=("--print-config",))
    path.write_text(first.out, encoding="utf-8")

    code = execute(["--config", str(path), "--print-config"])

    assert (first.code, code) == (0, 0)
    assert capfd.readouterr().out == first.out
    assert {"block-tokens = 16", "stall-timeout = 0.25", "tp-ranks = [1]"} <= set(first.out.splitlines())


@pytest.mark.parametrize("separator", [",", " ", ", "])
def test_lists_in_variables(start: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, separator: str) -> None:
    """The values of a list in a variable are separated by commas, white space, or both."""
    monkeypatch.setenv("STATEPOOL_TP_RANKS", separator.join(["0", "1"]))
    monkeypatch.setenv("STATEPOOL_ALLOW_PEER", separator.join(["unix:/a", "unix:/b"]))

    ended = start(last=("--print-config",))

    assert {"tp-ranks = [0, 1]", 'allow-peer = ["unix:/a", "unix:/b"]'} <= set(ended.out.splitlines())


def test_lists_in_a_file(tmp_path: Path, start: Callable[..., Ended]) -> None:
    """A list of the configuration file is one, as what --print-config prints for several ranks."""
    path = tmp_path / "server.toml"
    path.write_text('tp-ranks = [1, 0]\nallow-peer = ["unix:/a", "unix:/b"]\n', encoding="utf-8")

    ended = start("--config", str(path), last=("--print-config",))

    assert {"tp-ranks = [1, 0]", 'allow-peer = ["unix:/a", "unix:/b"]'} <= set(ended.out.splitlines())


@pytest.mark.parametrize("text", ["DS", "ds"])
def test_conv_layout_in_either_case(start: Callable[..., Ended], text: str) -> None:
    """An order of conv dimensions may be written in lower case, as for `statepool shapes`."""
    ended = start("--conv-layout", text, last=("--print-config",))

    assert 'conv-layout = "DS"' in ended.out.splitlines()


def test_flags_win_over_environment_and_that_over_the_file(
    tmp_path: Path, start: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flags win over STATEPOOL_* variables, and those over the file that STATEPOOL_CONFIG names."""
    path = tmp_path / "server.toml"
    path.write_text("max-sessions = 5\nmax-batch = 6\nmax-replays = 7\n", encoding="utf-8")
    monkeypatch.setenv("STATEPOOL_CONFIG", str(path))
    monkeypatch.setenv("STATEPOOL_MAX_BATCH", "8")
    monkeypatch.setenv("STATEPOOL_MAX_SESSIONS", "4")

    ended = start("--max-batch", "9", last=("--print-config",))

    assert {"max-batch = 9", "max-sessions = 4", "max-replays = 7"} <= set(ended.out.splitlines())


def test_a_start_that_fails_leaves_signals_alone(start: Callable[..., Ended]) -> None:
    """A server that could not be started has not taken signals from the process that tried."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    ended = start("--blocks", "2000000000")

    assert "are available" in ended.error
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
