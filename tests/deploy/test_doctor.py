"""Guarantee: `statepool doctor` finds nothing wrong with a good deployment, and names what is wrong with a bad one."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from attach.workers import Workers
from deploy.commands import Report, run
from service.servers import Server, Servers, until
from statepool import Client

LAYOUT = "VLLM_SSM_CONV_STATE_LAYOUT"
WITHOUT_OVERRIDE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
"""Makes rights count for the superuser as well."""
NAMESPACE = ("unshare", "--map-root-user", "--mount")
IN_NAMESPACE = shutil.which("unshare") and subprocess.run([*NAMESPACE, "true"], check=False).returncode == 0
needs_namespaces = pytest.mark.skipif(not IN_NAMESPACE, reason="no user namespaces here")


def on_tmpfs(options: str, *more: str) -> tuple[str, ...]:
    """Surrounds a command with a mount namespace that has a tmpfs of its own at /mnt."""
    return (*NAMESPACE, "sh", "-c", " && ".join([f"mount -t tmpfs -o {options} t /mnt", *more, 'exec "$0" "$@"']))


def test_all_is_well(server: Server) -> None:
    """A running server is examined to the bottom, without a failure."""
    report = Report("--target", server.target, env={LAYOUT: "SD"})

    assert (report.exit_code, report.failures()) == (0, [])
    checked = {check for check, finding in report.findings.items() if finding["verdict"] == "ok"}
    assert checked >= {"socket", "health", "versions", "user", "attach socket", "pid namespace", "conv layout"}
    assert checked >= {"state dir", "devices", "quarantine"}
    assert str(server.state_dir) in report.findings["state dir"]["detail"]


def test_every_fault_has_a_remedy(tmp_path: Path) -> None:
    """Whatever is not well comes with what to do, in the table as in JSON."""
    arguments = ("--target", f"unix:{tmp_path / 'none.sock'}", "--memory", "4MiB", "--state-dir", str(tmp_path))
    report, table = Report(*arguments), run("doctor", *arguments, env={"COLUMNS": "200"})

    assert report.exit_code == table.returncode == 1
    for finding in report.findings.values():
        assert bool(finding["remedy"]) == (finding["verdict"] != "ok")
        assert finding["remedy"] in table.stdout


def test_no_server(tmp_path: Path) -> None:
    """A folder and a socket that are missing are told apart."""
    no_socket = Report("--target", f"unix:{tmp_path / 's.sock'}")
    no_folder = Report("--target", f"unix:{tmp_path / 'none' / 's.sock'}")

    assert no_socket.failures() == no_folder.failures() == ["socket", "health"]
    assert no_socket.findings["socket"]["detail"] == f"{tmp_path / 's.sock'}: does not exist"
    assert no_folder.findings["socket"]["detail"] == f"{tmp_path / 'none'}: does not exist"


def test_no_socket_at_all(tmp_path: Path) -> None:
    """Another file in the socket's place is named."""
    (tmp_path / "s.sock").touch()

    assert "not a socket" in Report("--target", f"unix:{tmp_path / 's.sock'}").findings["socket"]["detail"]


def test_dead_server(servers: Servers) -> None:
    """The socket of a server that was killed is not taken for one that is starting."""
    server = servers.start().wait_until_ready()
    server.terminate(signal.SIGKILL)
    server.wait()

    report = Report("--target", server.target)

    assert report.failures() == ["socket", "health"]
    assert "dead" in report.findings["socket"]["detail"]


def test_rights_of_the_socket(servers: Servers) -> None:
    """A socket, or a folder, that this process may not use is told with its rights."""
    server = servers.start().wait_until_ready()

    server.socket.chmod(0o400)
    of_socket = Report("--target", server.target, within=WITHOUT_OVERRIDE)
    server.socket.parent.chmod(0o600)
    of_folder = Report("--target", server.target, within=WITHOUT_OVERRIDE)
    server.socket.parent.chmod(0o700)
    server.socket.chmod(0o770)

    assert of_socket.failures() == of_folder.failures() == ["socket", "health"]
    assert "mode 0400" in of_socket.findings["socket"]["detail"]
    assert "mode 0600" in of_folder.findings["socket"]["detail"]


def test_not_the_server(tmp_path: Path) -> None:
    """Somebody who listens but speaks no gRPC is no healthy server."""
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "s.sock"))
        mute.listen()

        report = Report("--target", f"unix:{tmp_path / 's.sock'}", "--timeout", "300ms")

    assert report.verdict("socket") == "ok"
    assert report.failures() == ["health"]


@pytest.mark.parametrize(("ours", "verdict"), [("9.0.0", "failure"), ("0.1.999", "warning")])
def test_version_of_the_client(server: Server, tmp_path: Path, ours: str, verdict: str) -> None:
    """A client of another series is a failure, of another patch a warning."""
    assert version("statepool").startswith("0.1."), "the parameters are for another series"
    installed = tmp_path / f"statepool-{ours}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.4\nName: statepool\nVersion: {ours}\n", encoding="utf-8")

    report = Report("--target", server.target, env={"PYTHONPATH": str(tmp_path)})

    assert report.verdict("versions") == verdict
    assert ours in report.findings["versions"]["detail"]


def test_layout_of_the_environment(server: Server) -> None:
    """An engine whose variable asks for another conv layout than the pool's would compute nonsense: a failure."""
    report = Report("--target", server.target, env={LAYOUT: "DS"})

    assert report.failures() == ["conv layout"]
    assert f"{LAYOUT}=SD" in report.findings["conv layout"]["remedy"]


@pytest.mark.parametrize("value", ["ds", "sd", "dim"])
def test_layout_that_no_engine_takes(server: Server, value: str) -> None:
    """A variable at which the engine itself would fail is a failure here too, not a layout."""
    report = Report("--target", server.target, env={LAYOUT: value})

    assert report.failures() == ["conv layout"]
    assert report.findings["conv layout"]["detail"] == f"{LAYOUT}: must be SD or DS, got '{value}'"


def test_an_empty_variable_is_none(server: Server) -> None:
    """An empty variable names no layout: the next one counts, as it does for the engine."""
    report = Report("--target", server.target, env={"STATEPOOL_CONV_LAYOUT": "", LAYOUT: "SD"})

    assert report.findings["conv layout"] == {
        "check": "conv layout",
        "verdict": "ok",
        "detail": f"SD, by {LAYOUT} here as well",
        "remedy": "",
    }


def test_layout_by_default(servers: Servers) -> None:
    """Without a variable this may be no engine's environment: another layout than the default is a warning."""
    server = servers.shared("--conv-layout", "DS")

    report = Report("--target", server.target)

    assert report.verdict("conv layout") == "warning"
    assert f"{LAYOUT}=DS" in report.findings["conv layout"]["remedy"]


def test_quarantine(server: Server, client: Client) -> None:
    """Blocks that wait for a worker that stands still are a warning, until it has answered."""
    with Workers() as workers:
        worker = workers.start(server)
        with client.create_session(60.0) as session:
            session.allocate_blocks(3)
            worker.signal(signal.SIGSTOP)
        waiting = Report("--target", server.target)
        worker.signal(signal.SIGCONT)
        until(lambda: client.get_pool().usage.quarantined_blocks == 0, "the worker to answer")

    assert (waiting.exit_code, waiting.verdict("quarantine")) == (0, "warning")
    assert waiting.findings["quarantine"]["detail"].startswith("3 blocks")
    assert Report("--target", server.target).verdict("quarantine") == "ok"


@needs_namespaces
def test_pid_namespace(server: Server) -> None:
    """A worker in another pid namespace is told of: fine where the kernel has pidfds of peers."""
    report = Report("--target", server.target, within=(*NAMESPACE, "--pid", "--fork", "--mount-proc"))

    assert report.verdict("pid namespace") in ("ok", "warning")
    assert "another one" in report.findings["pid namespace"]["detail"]


@needs_namespaces
@pytest.mark.parametrize(
    ("size", "file", "filled", "verdict"),
    [
        ("256m", "other", "0", "ok"),
        ("32m", "other", "0", "warning"),
        ("8m", "other", "0", "failure"),
        ("32m", "other", "20M", "failure"),
        ("224m", "state/rank0.arena", "16M", "ok"),
    ],
)
def test_room_on_tmpfs(tmp_path: Path, size: str, file: str, filled: str, verdict: str) -> None:
    """A tmpfs that is too small, or that something else fills, is found before the server is started."""
    within = on_tmpfs(f"size={size}", "mkdir --mode=700 /mnt/state", f"head -c {filled} /dev/zero > /mnt/{file}")
    settings = {"STATEPOOL_MEMORY": "8MiB", "STATEPOOL_TP_RANKS": "0,1", "STATEPOOL_STATE_DIR": "/mnt/state"}

    report = Report("--target", f"unix:{tmp_path / 's.sock'}", within=within, env=settings)

    assert report.verdict("tmpfs room") == verdict
    assert "take 16MiB" in report.findings["tmpfs room"]["detail"]
    assert ("16MiB of it held" in report.findings["tmpfs room"]["detail"]) == file.startswith("state/")


@needs_namespaces
def test_rights_of_the_state_dir(tmp_path: Path) -> None:
    """A folder of arenas that others may enter would be refused by the server."""
    arguments = ("--target", f"unix:{tmp_path / 's.sock'}", "--memory", "4MiB", "--state-dir", "/mnt/state")

    opened = Report(*arguments, within=on_tmpfs("size=8m", "mkdir --mode=755 /mnt/state"))
    private = Report(*arguments, within=on_tmpfs("size=8m", "mkdir --mode=700 /mnt/state"))

    assert opened.verdict("state dir") == "failure"
    assert opened.findings["state dir"]["remedy"].startswith("chmod 700 /mnt/state")
    assert private.verdict("state dir") == "ok"


def test_state_dir_on_a_disk(tmp_path: Path) -> None:
    """Arenas on a file system of a disk are a failure."""
    report = Report("--target", f"unix:{tmp_path / 's.sock'}", "--memory", "4MiB", "--state-dir", "/proc/state")

    assert "lies on proc" in report.findings["state dir"]["detail"]
    assert report.verdict("state dir") == "failure"


@needs_namespaces
@pytest.mark.parametrize(("option", "verdict"), [("advise", "ok"), ("never", "warning")])
def test_huge_pages(tmp_path: Path, option: str, verdict: str) -> None:
    """A large arena on a tmpfs without huge pages is a warning; the mount's own option counts."""
    switch = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    if not switch.exists() or {"[deny]", "[force]"} & set(switch.read_text(encoding="ascii").split()):
        pytest.skip("this kernel's huge pages do not follow the mount's option")
    arguments = ("--target", f"unix:{tmp_path / 's.sock'}", "--memory", "1GiB", "--state-dir", "/mnt/state")

    report = Report(*arguments, within=on_tmpfs(f"size=2g,huge={option}"))

    assert report.verdict("huge pages") == verdict


@pytest.fixture
def limited() -> Iterator[tuple[str, ...]]:
    """Makes a control group of 2 GiB, and gives the command that enters it."""
    name = f"statepool-test-{os.getpid()}"
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    group, limit = (v1 / name, "memory.limit_in_bytes") if v1.is_dir() else (v2 / name, "memory.max")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        (group / limit).write_text(str(2**31), encoding="ascii")
        yield ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$0" "$@"')
    except OSError as error:
        pytest.skip(f"no memory limit can be set: {error}")
    finally:
        group.rmdir()


@pytest.mark.parametrize(("memory", "verdict"), [("1GiB", "ok"), ("1.5GiB", "warning"), ("2GiB", "failure")])
def test_memory_limit(limited: tuple[str, ...], tmp_path: Path, memory: str, verdict: str) -> None:
    """Arenas that the control group's limit has no room for are found before the kernel kills the server."""
    report = Report("--target", f"unix:{tmp_path / 's.sock'}", "--memory", memory, within=limited)

    assert report.verdict("memory limit") == verdict
    assert "2GiB for this process" in report.findings["memory limit"]["detail"]


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is a device here")
def test_no_device(tmp_path: Path) -> None:
    """A server that is to use a device where the driver shows none is told so."""
    report = Report("--target", f"unix:{tmp_path / 's.sock'}", env={"STATEPOOL_DEVICE": "cuda:0"})

    assert "devices" in report.failures()
