"Small models run several times faster on one thread, in this process and in those that it starts; tests for a GPU need one."
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU here")
