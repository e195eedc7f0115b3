"""The YAML file of each data set holds exactly the keywords of its constructor."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from distill.data.base import ImageData

FILES = sorted((Path(__file__).parents[2] / "conf" / "data").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_keys_are_the_signature(path):
    numbers = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    numbers = numbers.get("data", numbers)  # of a file that also says what the run is called
    data = get_class(numbers.pop("_target_"))
    parameters = inspect.signature(data).parameters
    assert issubclass(data, ImageData)
    assert set(numbers) == set(parameters)
    assert all(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters.values())


def test_all_data_sets_were_found():
    assert {path.stem for path in FILES} >= {"cifar100", "digits", "folder", "imagenet", "stl10", "tiny_imagenet"}


def test_classes_are_counted_without_torch():
    code = "import sys; from distill.data.layout import classes_in; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
