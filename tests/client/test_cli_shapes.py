"""Guarantee: ``statepool shapes`` says what a model needs, from any source of settings, or in one line why not."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from statepool.layout import Arrangement, blocks_that_fit
from statepool.models import bundled_models, model_layout, read_model_config

COMMAND = str(Path(sysconfig.get_path("scripts")) / "statepool")
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("STATEPOOL_", "VLLM_"))}


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the installed command with nothing of ours in the environment but what is named."""
    return subprocess.run(
        [COMMAND, *arguments], env=CLEAN | environment, capture_output=True, text=True, check=False, timeout=60
    )


def _facts(*arguments: str, **environment: str) -> dict[str, Any]:
    done = _run("shapes", "--json", *arguments, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_json_holds_every_fact() -> None:
    """The machine form has the settings, the states, and the same sizes and fingerprint as the library."""
    layout = model_layout(
        read_model_config(bundled_models()["qwen3_next"]),
        tp_size=8,
        num_spec=2,
        conv_layout="DS",
        conv_dtype="float16",
        temporal_dtype="float32",
    )

    facts = _facts(
        *("--model-config", "qwen3_next", "--tp-size", "8", "--num-spec", "2", "--conv-layout", "DS"),
        *("--conv-dtype", "float16", "--temporal-dtype", "float32"),
        *("--arrangement", "layer_major", "--memory", "40GiB"),
    )

    assert facts.pop("parameters")["num_v_heads"] == 32
    assert facts.pop("state_layers")[:4] == [0, 1, 2, 4]
    assert facts == {
        "model_type": "qwen3_next",
        "family": "gated_delta_net",
        "model_dtype": "bfloat16",
        "tp_size": 8,
        "num_spec": 2,
        "conv_layout": "DS",
        "tensors": [
            {"kind": "temporal", "shape": [4, 128, 128], "dtype": "float32", "bytes": 262144, "count": 36},
            {"kind": "conv", "shape": [1024, 5], "dtype": "float16", "bytes": 10240, "count": 36},
        ],
        "block_bytes": layout.image_bytes,
        "fingerprint": layout.fingerprint,
        "arrangement": "layer_major",
        "memory_bytes": 40 * 2**30,
        "block_count": blocks_that_fit(layout, 40 * 2**30, Arrangement.LAYER_MAJOR),
    }


def test_the_table_is_for_people() -> None:
    """The table names the model, each distinct state, the block, the count that fits, and the whole fingerprint."""
    layout = model_layout(read_model_config(bundled_models()["kimi_linear"]), tp_size=8)

    done = _run("shapes", "--model-config", "kimi_linear", "--tp-size", "8", "--memory", "1GiB")

    assert (done.returncode, done.stderr) == (0, "")
    assert "kimi_linear: kda, 21 state layers" in done.stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert rows == [
        ["temporal", "[4, 128, 128]", "float32", "262,144", "21", "5.25MiB"],
        ["conv", "[3, 512] SD", "bfloat16", "3,072", "63", "189KiB"],
    ]
    assert f"{layout.image_bytes:,} bytes" in done.stdout
    assert f"{blocks_that_fit(layout, 2**30):,} fit into 1GiB" in done.stdout
    assert layout.fingerprint in done.stdout


def test_a_config_file_of_a_model(tmp_path: Path) -> None:
    """A path to a config.json, or to its folder, does as well as a bundled name."""
    config = tmp_path / "config.json"
    states = [{"name": "s", "kind": "temporal", "shape": [8], "dtype": "float32"}]
    config.write_text(json.dumps({"model_type": "custom", "states": states}))

    by_file, by_folder = _facts("--model-config", str(config)), _facts("--model-config", str(tmp_path))

    assert by_file == by_folder
    assert (by_file["family"], by_file["block_bytes"], by_file["block_count"]) == ("custom", 256, None)


def test_settings_come_from_flags_then_environment_then_file(tmp_path: Path) -> None:
    """A flag beats a variable, which beats the file; the file may be named by a variable too."""
    settings = tmp_path / "statepool.toml"
    settings.write_text('[shapes]\nmodel-config = "mamba2"\ntp-size = 2\nmemory = "1GiB"\nnum_spec = 1\n')
    environment = {"STATEPOOL_CLIENT_CONFIG": str(settings), "STATEPOOL_TP_SIZE": "4", "STATEPOOL_NUM_SPEC": "2"}

    facts = _facts("--tp-size", "8", **environment)

    assert facts["tp_size"] == 8
    assert facts["num_spec"] == 2
    assert (facts["model_type"], facts["memory_bytes"]) == ("mamba2", 2**30)


def test_variables_of_the_server_are_left_alone() -> None:
    """A variable that this command does not know is no error: the server reads the same prefix."""
    assert (
        _facts("--model-config", "mamba", STATEPOOL_STATE_DIR="/run/statepool", STATEPOOL_TP_RANKS="0,1")["tp_size"]
        == 1
    )


@pytest.mark.parametrize(
    ("variables", "conv_layout"),
    [
        ({"VLLM_SSM_CONV_STATE_LAYOUT": "DS"}, "DS"),
        ({"VLLM_SSM_CONV_STATE_LAYOUT": "DS", "STATEPOOL_CONV_LAYOUT": "SD"}, "SD"),
    ],
)
def test_the_conv_layout_follows_the_engine(variables: dict[str, str], conv_layout: str) -> None:
    """Without a flag the engine's own variable decides, unless ours does."""
    assert _facts("--model-config", "mamba", **variables)["conv_layout"] == conv_layout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["shapes"], 2, "--model-config"),
        (["shape"], 2, 'Unknown command "shape"'),
        (["shapes", "--model-config", "mamba", "--bogus", "1"], 2, "Unknown option: --bogus"),
        (["shapes", "--model-config", "mamba", "--memory", "4Gib"], 2, "Invalid value for --memory: size '4Gib'"),
        (["shapes", "--model-config", "mamba", "--tp-size", "two"], 2, "Invalid value for --tp-size"),
        (["shapes", "--model-config", "mamba", "--conv-layout", "XX"], 2, 'Invalid value "XX" for --conv-layout'),
        (["shapes", "--model-config", "mamba", "--config", "/nowhere.toml"], 2, "/nowhere.toml: No such file"),
        (["shapes", "--model-config", "nope"], 1, "nope: no such file, nor a bundled model: bamba, "),
        (["shapes", "--model-config", "/"], 1, "/config.json: No such file"),
        (
            ["shapes", "--model-config", "olmo_hybrid", "--tp-size", "4"],
            1,
            "olmo_hybrid: num_k_heads: 30 is not divisible",
        ),
        (["shapes", "--model-config", "mamba", "--conv-dtype", "int64"], 1, "conv_dtype: 'int64' is unknown"),
    ],
)
def test_an_error_is_one_line(arguments: list[str], exit_code: int, message: str) -> None:
    """Wrong calls exit with 2, failures with 1; each says why in one line on standard error and prints nothing else."""
    done = _run(*arguments)

    assert done.returncode == exit_code
    assert done.stdout == ""
    assert done.stderr.startswith("statepool: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[shapes]\nbogus = 1\n", 'Unknown option: "[bogus]" from'),
        ("[shape]\ntp-size = 1\n", "unknown key 'shape'"),
        ("tp-size = 1\n", "unknown key 'tp-size'"),
        ("shapes = 1\n", "unknown key 'shapes'"),
        ("[shapes\n", "Expected ']'"),
        ('[shapes]\ntp-size = "two"\n', "Invalid value for [tp-size] from"),
    ],
)
def test_a_bad_settings_file_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    """Unknown tables, unknown keys, wrong types and broken files are refused in one line that names the file."""
    settings = tmp_path / "statepool.toml"
    settings.write_text(text)

    done = _run("shapes", "--model-config", "mamba", "--config", str(settings))

    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert str(settings) in done.stderr
    assert done.stderr.count("\n") == 1


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=CLEAN, capture_output=True, text=True, check=False, timeout=60
    )


def test_shapes_imports_neither_grpc_nor_torch() -> None:
    """The command works where the service's and the worker's libraries would only slow it down."""
    done = _python(
        "import sys\n"
        "from statepool.cli.app import run\n"
        "assert run(['shapes', '--model-config', 'mamba']) == 0\n"
        "assert not {'grpc', 'torch', 'statepool_server'} & set(sys.modules)\n"
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_a_base_install_says_what_to_install() -> None:
    """Without the extra's libraries the command names the extra instead of showing a traceback."""
    done = _python("import sys\nsys.modules['cyclopts'] = None\nfrom statepool.cli import main\nmain()")

    assert done.returncode == 1
    assert done.stderr == "statepool: the command line is an extra: pip install 'statepool[cli]'\n"
