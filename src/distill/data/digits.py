"""scikit-learn's handwritten digits: 1,797 images that need no download, for a first run in seconds."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from distill.data.base import Part
from distill.data.resident import ResidentData


@dataclass(kw_only=True, eq=False, repr=False)
class Digits(ResidentData):
    """The UCI test set of optical digits (Alpaydin and Kaynak, 1998), as scikit-learn ships it.

    The last fifth in the order of the file, 359 images, is the test set. The 8x8
    images of values 0 to 16 are resized bilinearly to `size` and repeated in three equal channels. `root` is not read.
    """

    def read(self) -> tuple[Part, Part]:
        """Training and test images as uint8, shape (samples, size, size, 3)."""
        bunch = load_digits()
        self.class_names = [str(digit) for digit in range(10)]
        grey = torch.from_numpy(bunch.images).float().unsqueeze(1) * (255 / 16)
        grey = F.interpolate(grey, (self.size, self.size), mode="bilinear").round().to(torch.uint8)
        whole = Part(grey.permute(0, 2, 3, 1).repeat(1, 1, 1, 3), torch.from_numpy(bunch.target).long())
        order = torch.arange(len(whole))
        test = len(whole) // 5
        return whole.take(order[:-test]), whole.take(order[-test:])
