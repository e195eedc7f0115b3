"""The script that measures how cost grows: that it measures every point and says what it leaves out."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import harness

SCRIPT = harness.ROOT / "scripts/growth.py"


def load_script():
    spec = importlib.util.spec_from_file_location("growth_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["growth_script"] = module  # where its dataclass looks for its annotations
    spec.loader.exec_module(module)
    return module


growth = load_script()


def test_every_point_is_measured_and_written(tmp_path: Path) -> None:
    """As a command: its processes are forks of one that has done nothing but import."""
    file = tmp_path / "growth.json"
    command = [sys.executable, SCRIPT, "--quick", "--threads", "1", "--methods", "kd,mcld", "--json", file]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    content = json.loads(file.read_text())
    found = [(point["method"], point["grows"], point[point["grows"]]) for point in content["points"]]
    assert found == [
        *(("kd", "classes", 10), ("kd", "classes", 20), ("kd", "batch", 4), ("kd", "batch", 8)),
        *(("mcld", "queue_length", 64), ("mcld", "queue_length", 100_000)),
        *(("mcld", "classes", 10), ("mcld", "classes", 20), ("mcld", "batch", 4), ("mcld", "batch", 8)),
    ]
    for point in content["points"]:
        assert len(point["milliseconds"]) >= growth.FEWEST
        assert 0 < min(point["milliseconds"]) <= point["low"] <= point["median"] <= point["high"]
        assert max(point["milliseconds"]) >= point["high"]
    # queue in float32, its samples' indices, position and count, and the labels of as many samples
    long = content["points"][5]
    assert long["state_bytes"] == 100_000 * (10 * 4 + 8) + 2 * 8 + 100_000 * 8
    assert long["peak_bytes"] > 0.8 * long["state_bytes"]
    assert content["base"] == {"queue_length": 64, "classes": 10, "batch": 8}
    assert content["left_out"] == {}
    assert content["versions"].keys() >= {"python", "torch"}
    assert done.stdout.count("\n| kd |") == 4
    assert done.stdout.count("\n| mcld |") == 6


def test_every_method_is_measured_or_left_out_with_a_reason() -> None:
    for name, node in growth.nodes_of(harness.METHODS, []).items():
        if reason := growth.unsuitable(node):
            assert reason in ("reads feature maps", "asks the networks itself")
            continue
        method, once = growth.stepper(node, growth.SMALL, "cpu")
        assert once() > 0, name
        if "queue_length" in node:
            assert method.count == growth.SMALL.queue_length


def test_a_queue_beyond_its_share_of_the_memory_is_left_out() -> None:
    node, sizes = {"queue_length": None, "queue_dtype": "float32"}, growth.Sizes(1_000, 1_000, 8)
    assert growth.too_large(node, sizes, free=4_000_000 * 10) is None
    reason = growth.too_large(node, sizes, free=6_000_000)
    assert reason == "a queue of 4 MB is more than 60% of the 6 MB that are free"
    assert growth.too_large(node | {"queue_dtype": "bfloat16"}, sizes, free=6_000_000) is None
    assert growth.too_large({}, sizes, free=0) is None
    point = {"method": "mcld", "grows": "batch", "queue_length": 1_000, "classes": 1_000, "batch": 8}
    assert f"| mcld | 8 | skipped: {reason} |" in growth.table([point | {"skipped": reason}], "batch", sizes)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "mcdl"], "distiller=mcdl is unknown: choose one of mcld"),
        (["--methods", "mcld", "distiller.queue=1"], "There is no key distiller.queue"),
    ],
)
def test_a_mistake_is_said_in_one_sentence(arguments, said, capsys) -> None:
    assert growth.main(arguments) == 1
    assert said in capsys.readouterr().err
