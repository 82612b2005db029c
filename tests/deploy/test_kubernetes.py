"""Guarantee: the manifests are valid, and what they say of sizes, users, probes and times fits the server."""

import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from deploy.kubernetes import build, parse_quantity, sidecar, validate, volumes
from deploy.server_settings import DEFAULTS, IMAGE_USER, parsed
from statepool.doctor.memory import JOURNAL_BYTES, PROCESS_BYTES
from statepool_server.access.rules import Role

K8S = Path(__file__).parents[2] / "docker" / "k8s"
KEYS = ("tls.crt", "tls.key", "ca.crt")
"""What cert-manager puts into a secret."""
WORKLOAD = """\
apiVersion: apps/v1
kind: {kind}
metadata: {{name: engine, labels: {{statepool/sidecar: "{wanted}"}}}}
spec:
  selector: {{matchLabels: {{app: engine}}}}
  {more}
  template:
    metadata: {{labels: {{app: engine}}}}
    spec:
      containers: [{{name: worker, image: engine}}]
      initContainers: [{{name: weights, image: loader}}]
"""


@pytest.fixture(scope="module")
def loadtest() -> dict[str, dict[str, Any]]:
    """Builds the example."""
    return build(K8S / "loadtest")


@pytest.fixture(scope="module")
def job(loadtest: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Gives its job."""
    return loadtest["Job"]


def test_schemas(loadtest: dict[str, dict[str, Any]]) -> None:
    """Every object is valid in every version since native sidecars, unknown fields included."""
    assert set(loadtest) == {"Job", "NetworkPolicy"}
    for built in loadtest.values():
        validate(built)


def test_schemas_can_fail(job: dict[str, Any]) -> None:
    """A misspelt field would be found."""
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(job | {"spec": job["spec"] | {"backOffLimit": 0}})


@pytest.mark.parametrize(
    ("kind", "more"), [("Deployment", ""), ("DaemonSet", ""), ("StatefulSet", "serviceName: engine")]
)
def test_component(tmp_path: Path, kind: str, more: str) -> None:
    """The component joins the server to any kind of workload that asks for it, before its worker."""
    for wanted in ("true", "false"):
        (tmp_path / "workload.yaml").write_text(WORKLOAD.format(kind=kind, wanted=wanted, more=more), encoding="utf-8")
        component = os.path.relpath(K8S / "sidecar", tmp_path.resolve())
        (tmp_path / "kustomization.yaml").write_text(
            f"resources: [workload.yaml]\ncomponents: [{component}]\n", encoding="utf-8"
        )

        workload = build(tmp_path)[kind]

        names = [container["name"] for container in workload["spec"]["template"]["spec"]["initContainers"]]
        assert sorted(names) == (["statepool", "weights"] if wanted == "true" else ["weights"])
        validate(workload)


def test_monitoring(tmp_path: Path) -> None:
    """With this component the sidecar listens on the port that the PodMonitor names, in the pods that it selects."""
    (tmp_path / "workload.yaml").write_text(
        WORKLOAD.format(kind="Deployment", wanted="true", more=""), encoding="utf-8"
    )
    components = [os.path.relpath(K8S / name, tmp_path.resolve()) for name in ("sidecar", "monitoring")]
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [workload.yaml]\ncomponents: {components}\n", encoding="utf-8"
    )

    built = build(tmp_path)

    deployment, monitor = built["Deployment"], built["PodMonitor"]
    validate(deployment)
    template = deployment["spec"]["template"]
    server = next(each for each in template["spec"]["initContainers"] if each["name"] == "statepool")
    config = parsed({variable["name"]: variable["value"] for variable in server["env"]})
    (port,) = server["ports"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert (endpoint["port"], endpoint["path"]) == (port["name"], "/metrics")
    assert config.metrics_listen == f"0.0.0.0:{port['containerPort']}"
    assert config.insecure_metrics


def test_tls(tmp_path: Path) -> None:
    """With this component the sidecar takes the certificate that is asked for, from where its secret is mounted."""
    (tmp_path / "workload.yaml").write_text(
        WORKLOAD.format(kind="Deployment", wanted="true", more=""), encoding="utf-8"
    )
    components = [os.path.relpath(K8S / name, tmp_path.resolve()) for name in ("sidecar", "tls")]
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [workload.yaml]\ncomponents: {components}\n", encoding="utf-8"
    )

    built = build(tmp_path)

    deployment, certificate = built["Deployment"], built["Certificate"]["spec"]
    validate(deployment)
    pod = deployment["spec"]["template"]["spec"]
    server = next(each for each in pod["initContainers"] if each["name"] == "statepool")
    config = parsed({variable["name"]: variable["value"] for variable in server["env"]})
    (port,) = server["ports"]
    secret = next(volume["secret"] for volume in pod["volumes"] if volume["name"] == "statepool-tls")
    (mount,) = (each for each in server["volumeMounts"] if each["name"] == "statepool-tls")
    assert config.listen == [DEFAULTS.listen[0], f"0.0.0.0:{port['containerPort']}"]
    assert secret["secretName"] == certificate["secretName"]
    assert secret["defaultMode"] == 0o440
    paths = [config.tls_cert, config.tls_key, config.tls_client_ca]
    assert [str(path) for path in paths] == [f"{mount['mountPath']}/{name}" for name in KEYS]
    assert [uri.rpartition("/")[2] for uri in certificate["uris"]] == [Role.WORKER]


def test_settings(job: dict[str, Any]) -> None:
    """The variables are settings of the server, which takes them."""
    config = parsed({variable["name"]: variable["value"] for variable in sidecar(job)["env"]})

    assert config.model_config == "falcon_h1"
    assert config.tp_ranks == (0, 1)


@pytest.mark.parametrize("folder", ["loadtest", "component"])
def test_sizes(tmp_path: Path, job: dict[str, Any], folder: str) -> None:
    """Arenas and journal fit into their volume, and with the rest of the server into its memory limit."""
    if folder == "component":
        (tmp_path / "workload.yaml").write_text(
            WORKLOAD.format(kind="Deployment", wanted="true", more=""), encoding="utf-8"
        )
        component = os.path.relpath(K8S / "sidecar", tmp_path.resolve())
        (tmp_path / "kustomization.yaml").write_text(
            f"resources: [workload.yaml]\ncomponents: [{component}]\n", encoding="utf-8"
        )
        job = build(tmp_path)["Deployment"]
    server = next(c for c in job["spec"]["template"]["spec"]["initContainers"] if c["name"] == "statepool")
    config = parsed({variable["name"]: variable["value"] for variable in server["env"]})
    arenas = (config.memory or 0) * len(config.tp_ranks or range(config.tp_size))

    assert arenas + JOURNAL_BYTES <= parse_quantity(volumes(job)["statepool-arena"]["sizeLimit"])
    assert arenas + PROCESS_BYTES <= parse_quantity(server["resources"]["limits"]["memory"])
    assert server["resources"]["requests"]["memory"] == server["resources"]["limits"]["memory"]


def test_journal() -> None:
    """What is reserved for the journal is what one of the default size takes."""
    assert 3 * DEFAULTS.journal_bytes == JOURNAL_BYTES


def test_folders(job: dict[str, Any]) -> None:
    """Sockets and arenas lie where the server has them by default, in memory; the worker shares the sockets alone."""
    mounts = {mount["mountPath"]: mount["name"] for mount in sidecar(job)["volumeMounts"]}
    (worker,) = job["spec"]["template"]["spec"]["containers"]

    assert mounts == {"/run/statepool": "statepool-socket", "/dev/shm": "statepool-arena", "/tmp": "statepool-tmp"}  # noqa: S108
    assert DEFAULTS.listen == ["unix:///run/statepool/statepool.sock"]
    assert volumes(job)["statepool-arena"]["medium"] == volumes(job)["statepool-socket"]["medium"] == "Memory"
    assert worker["volumeMounts"] == [{"name": "statepool-socket", "mountPath": "/run/statepool"}]


def test_rights(job: dict[str, Any]) -> None:
    """The pod runs as the image's user and passes the restricted pod security standard."""
    pod = job["spec"]["template"]["spec"]
    user = pod["securityContext"]

    assert user["runAsUser"] == user["runAsGroup"] == user["fsGroup"] == IMAGE_USER
    assert user["runAsNonRoot"]
    assert user["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_times(job: dict[str, Any]) -> None:
    """A server that drains is neither taken for a dead one nor killed before it is done."""
    server = sidecar(job)
    patience = server["livenessProbe"]["periodSeconds"] * (server["livenessProbe"]["failureThreshold"] - 1)

    assert server["restartPolicy"] == "Always"
    assert patience > 2 * DEFAULTS.drain_timeout
    assert job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 2 * DEFAULTS.drain_timeout
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["exec"]["command"] == ["statepool", "health"]
        assert server[probe]["timeoutSeconds"] >= 5  # the command gives the server 3 s


def test_network(loadtest: dict[str, dict[str, Any]]) -> None:
    """The policy holds for the job's pods, and lets nothing in or out."""
    policy, labels = loadtest["NetworkPolicy"]["spec"], loadtest["Job"]["spec"]["template"]["metadata"]["labels"]

    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy == {"podSelector": policy["podSelector"], "policyTypes": ["Ingress", "Egress"]}
