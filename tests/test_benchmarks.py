"What waits for a GPU must run the first time there is one: the same parts, rehearsed on a CPU with the smallest model."
import json
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.py"
MEMORY = GPU.with_name("memory.py")
PARTS = ("speed", "precision", "recipe", "feed", "photos")


@pytest.mark.slow
def test_the_parts_of_make_gpu_run(tmp_path):
    done = subprocess.run([sys.executable, GPU, "--rehearse", "--out", tmp_path, *PARTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in PARTS}
    assert all(each["status"] == 0 and each["where"].startswith("CPU") for each in found.values())
    assert "shards over memory" in found["feed"]["printed"][-1] and "held-out bits/dim" in found["photos"]["printed"][-1]


def test_an_unknown_part_is_named():
    done = subprocess.run([sys.executable, GPU, "--rehearse", "spead"], capture_output=True, text=True)
    assert done.returncode == 2 and "spead: unknown; there are tests, inversion" in done.stderr


@pytest.mark.slow
def test_the_parts_of_the_memory_benchmark_run(tmp_path):
    for part, images in (("sample", 1000), ("kill", 1000), ("resume", 1000), ("evaluate", 100), ("explore", 1)):
        command = [sys.executable, MEMORY, part, "--preset", "photos", "--images", str(images), "--out", tmp_path]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "memory.json").read_text())
    assert all(0.1 < row["GB a process, at most"] < 3 for what, row in found.items() if what != "where")
    assert found["sample 1000 into a folder, killed"]["images by then"] >= 500
    assert found["sample 1000 into the same folder"]["those as in the archive"] == 1000
    assert {"panel Variance", "panel Bits", "panel Your image"} < found.keys()
    assert found["evaluate 100 samples, ranks: 2"]["the same figures as by 1"]
