"What waits for a GPU must run the first time there is one: the same parts, rehearsed on a CPU with the smallest model."
import json
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.py"
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
