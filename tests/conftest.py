"""What several test modules share."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cifar_root() -> Path:
    """Folder with the real CIFAR-100, named by DISTILL_DATA."""
    root = os.environ.get("DISTILL_DATA")
    if not root or not (Path(root) / "cifar-100-python" / "train").exists():
        pytest.skip("needs CIFAR-100: set DISTILL_DATA to the folder that holds cifar-100-python/")
    return Path(root)
