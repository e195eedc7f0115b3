"""The digits, and the numbers of their YAML file."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from sklearn.datasets import load_digits

from distill.data.digits import Digits

CONF = Path(__file__).parents[2] / "conf" / "data" / "digits.yaml"


@pytest.fixture(scope="module")
def digits():
    numbers = {**OmegaConf.to_container(OmegaConf.load(CONF)), "root": "", "batch_size": 64, "seed": 0}
    numbers.pop("_target_")
    data = Digits(**numbers)
    data.setup()
    return data


def test_the_last_fifth_is_the_test_set(digits):
    tested = torch.cat([batch.labels for batch in digits.test_dataloader()])
    assert (digits.num_samples, len(tested)) == (1438, 359)
    assert [*digits.labels.tolist(), *tested.tolist()] == load_digits().target.tolist()
    assert digits.class_names == list("0123456789")


def test_images_are_the_files_resized(digits):
    batch = next(iter(digits.test_dataloader()))
    small = torch.from_numpy(load_digits().images[1438 : 1438 + len(batch)])[:, None] / 16
    large = F.interpolate(small, (32, 32), mode="bilinear").expand(-1, 3, -1, -1)
    assert batch.images.shape == (256, 3, 32, 32)
    assert (batch.images - large).abs().max() < 0.5 / 255 + 1e-6


def test_mean_and_deviation_are_those_of_the_training_part(digits):
    digits.padding = 0
    pixels = torch.cat([batch.images for batch in digits.train_dataloader()]).double()
    for channel in range(3):
        assert pixels[:, channel].mean().item() == pytest.approx(digits.mean[channel], abs=5e-5)
        assert pixels[:, channel].std().item() == pytest.approx(digits.std[channel], abs=5e-5)
