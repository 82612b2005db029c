"""Settings of all tests."""

import os

import pytest
from hypothesis import settings

# Examples are measured by what they find, not by how long they take on a busy machine.
settings.register_profile("statepool", deadline=None, print_blob=True)
settings.register_profile("thorough", settings.get_profile("statepool"), max_examples=1000)
settings.load_profile("statepool")

# Arenas of tests lie in host memory, where Triton's kernels run only in its interpreter; read when triton is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

_SLOW = (
    "service/test_deadlines.py::test_a_session_that_is_resumed_late",
    *(
        "service/test_groups.py::test_a_",
        "service/test_directory.py::test_a_",
        "security/test_tls.py::test_certificate_is",
    ),
    *("service/test_recovery.py::test_a_full", "service/test_recovery.py::test_sessions_have_time"),
    *("service/test_commands.py::test_objectives", "service/test_commands.py::test_closed_loop"),
    *("security/test_commands.py::test_load_test", "security/test_commands.py::test_by_certificate"),
    *("attach/test_restarts.py", "security/test_peers.py", "robustness/test_runs.py"),
    *("robustness/test_soak.py", "robustness/test_twin.py", "robustness/test_field.py"),
    *("deploy/test_doctor.py", "deploy/test_guide.py", "deploy/test_health.py", "attach/test_cuda_memory.py"),
    *("deploy/test_readme_commands.py::test_commands", "deploy/test_reference.py"),
    "realmodel/test_end_to_end.py::test_prefix_hit[lfm2",
    "realmodel/test_end_to_end.py::test_speculation_and_preemption[mamba2",
    *("service/test_align_load.py::test_conv_layout_ds", "service/test_align_load.py::test_hits[layer"),
    *("service/test_align_load.py::test_closed_loop[layer", "service/test_align_load.py::test_open_loop"),
    "service/test_lifecycle.py::test_engine_that_cannot_copy_leaves_nothing_behind",
    *(
        "service/test_crashes.py",
        "service/test_floods.py",
        "service/test_retry_budget.py",
        "service/test_top.py",
        "service/test_restarts.py",
    ),
    *("transfer/test_nixl.py", "security/test_networks.py", "security/test_doctor.py", "realmodel/test_hand_over.py"),
    *("page/", "service/test_load_reports.py", "service/test_stalls.py", "service/test_stalled_copies.py"),
    "copy/test_triton_engine.py",
    *("service/test_draining.py", "transfer/test_failures.py", "tracing/test_traces.py", "monitoring/"),
)
"""Tests that `make test` leaves out, since what it takes is bounded; `make slow` runs them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is slow."""
    for item in items:
        if any(f"tests/{path}" in item.nodeid for path in _SLOW):
            item.add_marker(pytest.mark.slow)
