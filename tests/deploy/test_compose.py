"""Guarantee: the compose files are valid, and what they say of sizes, users and times fits the server."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.commands import run
from deploy.server_settings import DEFAULTS, DOCKER, parsed
from service.servers import Server
from statepool.doctor.memory import JOURNAL_BYTES, PROCESS_BYTES
from statepool.units import parse_bytes

FILES = tuple(DOCKER / f"compose{kind}.yaml" for kind in ("", ".cuda", ".monitoring", ".tls"))


def with_defaults(value: Any) -> Any:
    """Puts the default in the place of every ${NAME:-default}."""
    if isinstance(value, dict):
        return {key: with_defaults(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_defaults(item) for item in value]
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Reads the services of the first file."""
    composed = yaml.safe_load(FILES[0].read_text(encoding="utf-8"))
    return dict(with_defaults(composed["services"]))


def check(*files: Path) -> "subprocess.CompletedProcess[str]":
    """Checks files against the schema of compose files."""
    checker = Path(sys.executable).with_name("check-jsonschema")
    return subprocess.run(
        [str(checker), "--builtin-schema", "vendor.compose-spec", *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_schema(tmp_path: Path) -> None:
    """All files are valid; a misspelt field would be found."""
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(FILES[0].read_text(encoding="utf-8").replace("shm_size", "shm_sizes"), encoding="utf-8")

    assert check(*FILES).returncode == 0
    assert "shm_sizes" in check(wrong).stdout


def test_server(services: dict[str, Any]) -> None:
    """The server takes its settings; its arenas fit into /dev/shm, and with the rest into its memory."""
    server = services["server"]
    config = parsed(server["environment"])
    arenas = (config.memory or 0) * len(config.tp_ranks or range(config.tp_size))

    assert arenas + JOURNAL_BYTES <= size(server["shm_size"])
    assert arenas + PROCESS_BYTES <= size(server["mem_limit"])
    assert server["memswap_limit"] == server["mem_limit"]  # no swap
    assert float(server["stop_grace_period"].removesuffix("s")) > DEFAULTS.drain_timeout + 5


def test_confined(services: dict[str, Any]) -> None:
    """Nothing has rights, a network, or a root file system to write to."""
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"]
        assert service["network_mode"] == "none"
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["volumes"] == ["sockets:/run/statepool"]


def test_build(services: dict[str, Any]) -> None:
    """The image is built from the Dockerfile that is there, with arguments that it has."""
    build = services["server"]["build"]
    dockerfile = (FILES[0].parent / build["context"] / build["dockerfile"]).read_text(encoding="utf-8")

    for argument in build["args"]:
        assert re.search(rf"^ARG {argument}\b", dockerfile, re.MULTILINE)


def test_loadtest(services: dict[str, Any], server: Server) -> None:
    """The load test's command is one that runs."""
    name, *rest = services["loadtest"]["entrypoint"][1:]
    flags = services["loadtest"]["command"]
    flags[flags.index("--duration") + 1] = "200ms"

    answer = run(name, *rest, *flags, "--target", server.target, "--workload", "blocks", "--batch", "1")

    assert answer.returncode == 0, answer.stderr


def test_monitoring() -> None:
    """Prometheus scrapes where the server listens, which is on loopback; what is mounted is there."""
    services = with_defaults(yaml.safe_load(FILES[2].read_text(encoding="utf-8"))["services"])
    config = parsed({"STATEPOOL_MODEL_CONFIG": "mamba2"} | services["server"]["environment"])
    scraped = yaml.safe_load((DOCKER / "monitoring" / "prometheus.yaml").read_text(encoding="utf-8"))

    assert config.metrics_listen == scraped["scrape_configs"][0]["static_configs"][0]["targets"][0] == "127.0.0.1:9464"
    for name in ("prometheus", "grafana"):
        assert services[name]["network_mode"] == "service:server"
        for source in (volume.partition(":")[0] for volume in services[name]["volumes"]):
            assert source == "prometheus" or (DOCKER / source).is_file()


def test_tls() -> None:
    """With this file the server takes certificates where they are mounted, and is reached where it listens."""
    server = with_defaults(yaml.safe_load(FILES[3].read_text(encoding="utf-8"))["services"])["server"]
    config = parsed({"STATEPOOL_MODEL_CONFIG": "mamba2"} | server["environment"])
    (_, mounted, _), (_, port) = server["volumes"][0].split(":"), server["ports"][0].split(":")

    assert config.listen == [DEFAULTS.listen[0], f"0.0.0.0:{port}"]
    assert all(address.startswith("unix:///run/statepool/") for address in config.admin_listen)
    for path in (config.tls_cert, config.tls_key, config.tls_client_ca):
        assert str(path).startswith(f"{mounted}/")


def size(text: str) -> int:
    """Reads a size such as 2g."""
    return parse_bytes(text.upper() + "iB")
