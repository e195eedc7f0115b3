"""Pieces of real photographs for the oracles of image operations."""

import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf


def pieces(height: int, width: int) -> Tensor:
    """12 pieces of two photographs, uint8, shape (12, 3, height, width)."""
    parts = []
    for photo in load_sample_images().images:
        image = Image.fromarray(photo)
        for place in range(6):
            box = (90 * place, 60 * place, 90 * place + 120, 60 * place + 100)
            parts.append(tvf.pil_to_tensor(image.crop(box).resize((width, height))))
    return torch.stack(parts)
