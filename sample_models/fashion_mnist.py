"""The data behind the sample models: Fashion-MNIST, decoded on first use.

Images are uint8 arrays (N, 28, 28), 0 = background; labels are int64 arrays (N,), 0..9. Two splits:
"test" (10,000 images, all of the original test data) and "train" (the first 30,000 of the 60,000 original
training images; none is also a test image, a test makes sure). Models are trained on "train" alone.

Reading needs numpy and the standard library only. Decoding "train" takes about 0.6 s and 24 MB, "test" a
third of that; both are kept for the life of the process, and importing this module decodes nothing.
"""

import lzma
import math
from functools import cache
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / "data"
"""Holds SPLIT-images.xz and SPLIT-labels.xz: plain uint8 bytes, image after image, row after row."""

CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
"""What label 0, 1, … 9 means."""

MEAN, STD = 0.2860, 0.3530
"""Of all training pixels, on a scale of 0 to 1."""

CALIBRATION_IMAGES = 512
"""How many training images calibrate a static quantization: enough for stable ranges, read in 0.1 s."""


VALIDATION_IMAGES = 2000
"""How many training images are left out of fine-tuning and judge it."""


@cache
def images(split: str) -> np.ndarray:
    """All images of "train" or "test": uint8, (N, 28, 28), read-only."""
    return np.frombuffer(lzma.decompress((DATA / f"{split}-images.xz").read_bytes()), np.uint8).reshape(-1, 28, 28)


@cache
def labels(split: str) -> np.ndarray:
    """The labels of `images(split)`: int64, (N,)."""
    return np.frombuffer(lzma.decompress((DATA / f"{split}-labels.xz").read_bytes()), np.uint8).astype(np.int64)


def normalise(pixels: np.ndarray) -> torch.Tensor:
    """uint8 pixels of any shape → float32 tensor of the same shape, mean about 0, deviation about 1."""
    return torch.from_numpy((pixels.astype(np.float32) / 255 - MEAN) / STD)


class Batches:
    """Batches (inputs, labels) of one split, as often as it is iterated over.

    Inputs are float32 (n, *sample_shape), labels int64 (n,). The last batch may be smaller. With
    `augment`, every pass shuffles and distorts anew; pass k of a new object is always the same.
    """

    def __init__(self, split, batch_size, sample_shape=(1, 28, 28), indices=None, augment=False, seed=0):
        self.split, self.batch_size, self.sample_shape = split, batch_size, sample_shape
        self.augment, self.seed, self.passes = augment, seed, 0
        self._indices = indices

    def __len__(self):
        return math.ceil(len(self._chosen()) / self.batch_size)

    def __iter__(self):
        chosen, random = self._chosen(), np.random.default_rng([self.seed, self.passes])
        self.passes += 1
        if self.augment:
            chosen = random.permutation(chosen)
        for start in range(0, len(chosen), self.batch_size):
            rows = chosen[start : start + self.batch_size]
            pixels = images(self.split)[rows]
            if self.augment:
                pixels = distort(pixels, random)
            yield normalise(pixels).reshape(-1, *self.sample_shape), torch.from_numpy(labels(self.split)[rows])

    def set_epoch(self, number):
        """The next pass is this one: a training that was stopped goes on with the order it had."""
        self.passes = number

    def _chosen(self):
        return np.arange(len(labels(self.split))) if self._indices is None else self._indices


@cache
def validation_images() -> np.ndarray:
    """Which training images judge the progress of later training: int64 (VALIDATION_IMAGES,), rising, always the same.

    The shipped weights have seen them, so they look a little better on them than on the test images.
    """
    return np.sort(np.random.default_rng(2).choice(len(labels("train")), VALIDATION_IMAGES, replace=False))


def train_batches(sample_shape, batch_size=128, seed=0, validation=True):
    """The training images: shuffled, shifted, mirrored, partly erased. `validation`: without `validation_images`."""
    indices = np.setdiff1d(np.arange(len(labels("train"))), validation_images()) if validation else None
    return Batches("train", batch_size, sample_shape, indices=indices, augment=True, seed=seed)


def validation_batches(sample_shape):
    """`VALIDATION_IMAGES` training images, undistorted, which `train_batches` leaves out."""
    return Batches("train", 250, sample_shape, indices=validation_images())


def calibration_batches(sample_shape):
    """`CALIBRATION_IMAGES` training images, undistorted; the same ones each time."""
    chosen = np.random.default_rng(0).choice(len(labels("train")), CALIBRATION_IMAGES, replace=False)
    return Batches("train", 64, sample_shape, indices=np.sort(chosen))


def test_batches(sample_shape):
    """The 10,000 test images in their original order."""
    return Batches("test", 250, sample_shape)


def example(sample_shape, batch_size):
    """A real batch of training images, drawn with a fixed seed: float32 (batch_size, *sample_shape)."""
    chosen = np.random.default_rng(1).integers(len(labels("train")), size=batch_size)
    return normalise(images("train")[chosen]).reshape(batch_size, *sample_shape)


def distort(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Shift each image by up to 2 pixels, mirror half of them, erase a rectangle of a third; (N, 28, 28) uint8."""
    count = len(pixels)
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (28, 28), axis=(1, 2))
    shifted = windows[np.arange(count), random.integers(0, 5, count), random.integers(0, 5, count)]
    mirrored = random.random((count, 1, 1)) < 0.5
    shifted = np.where(mirrored, shifted[:, :, ::-1], shifted)

    axis, size = np.arange(28), random.integers(4, 13, (2, count, 1))
    top_left = (random.random((2, count, 1)) * (29 - size)).astype(int)
    inside = (axis >= top_left) & (axis < top_left + size)
    erased = inside[0][:, :, None] & inside[1][:, None, :] & (random.random((count, 1, 1)) < 0.35)
    return np.where(erased, np.uint8(0), shifted)
