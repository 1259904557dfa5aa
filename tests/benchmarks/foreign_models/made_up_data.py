"""Texts, sounds and pictures of ten made-up classes: seeded, varied, and told apart by what a network can see.

Each function gives (inputs, labels) for a number of samples and a seed. Nothing is constant: texts have all lengths,
sounds syllables and noise, pictures colours, phases and a second pattern that says nothing about the class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

CLASSES = 10

TEST_SAMPLES = 4000
"""Of 1,000 some twenty change their answer with any INT8, and the balance of those says nothing about a point."""

VOCABULARY, LENGTH, SHORTEST, FAVOURITES = 30522, 64, 16, 12
"""Of the texts: words known, words in the longest and in the shortest, and words that a class prefers."""

FIRST_WORD, BEGINS, ENDS = 1000, 101, 102
"""What stands below is no word; the marks are BERT's."""

RATE = 16000
"""Of the sounds, in samples a second. They last one second."""

Made = tuple[Any, torch.Tensor]


def batches(make: Callable[[int, int], Made], count: int, seed: int, size: int = 50) -> Iterator[Made]:
    """So many samples in batches, each with a seed of its own."""
    return (make(min(size, count - first), 1000 * seed + first) for first in range(0, count, size))


def offered(
    make: Callable[[int, int], Made],
) -> tuple[Callable[..., Any], Callable[[], Iterator[Made]], Callable[[], Iterator[Made]]]:
    """What a model file offers beside its network: example_input, calibration_data (256) and test_data (4,000)."""
    return (
        lambda batch_size: make(batch_size, batch_size)[0],
        lambda: batches(make, 256, 2),
        lambda: batches(make, TEST_SAMPLES, 3),
    )


def texts(count: int, seed: int) -> Made:
    """Words of which six in ten are favourites of the class, the others frequent or rare; padded to one length."""
    random, labels = _begin(count, seed)
    fixed = torch.Generator().manual_seed(0)
    favourites = torch.randint(FIRST_WORD, VOCABULARY, (CLASSES, FAVOURITES), generator=fixed)
    own = favourites[labels].gather(1, torch.randint(FAVOURITES, (count, LENGTH), generator=random))
    common = FIRST_WORD + (torch.rand(count, LENGTH, generator=random) ** 4 * (VOCABULARY - FIRST_WORD)).long()
    words = torch.where(torch.rand(count, LENGTH, generator=random) < 0.6, own, common)
    lengths = torch.randint(SHORTEST, LENGTH + 1, (count, 1), generator=random)
    place = torch.arange(LENGTH).expand(count, -1)
    words[:, 0] = BEGINS
    words[place == lengths - 1] = ENDS
    words[place >= lengths] = 0
    return {"input_ids": words, "attention_mask": (place < lengths).long()}, labels


def sounds(count: int, seed: int) -> Made:
    """A voice of the class's pitch, a little off, with overtones and syllables, in noise; mean 0, deviation 1."""
    random, labels = _begin(count, seed)
    time = torch.arange(RATE) / RATE
    pitch = 120 * 2 ** (labels[:, None] / 3) * (1 + 0.01 * torch.randn(count, 1, generator=random))
    turns = pitch * time + 0.3 * torch.sin(2 * torch.pi * (5 * time + torch.rand(count, 1, generator=random)))
    voice = torch.zeros(count, RATE)
    for overtone in (1, 2, 3):
        strength = (0.5 + torch.rand(count, 1, generator=random)) / overtone
        voice += strength * torch.sin(2 * torch.pi * (overtone * turns + torch.rand(count, 1, generator=random)))
    rate, start = 2 + 4 * torch.rand(count, 1, generator=random), torch.rand(count, 1, generator=random)
    voice *= torch.sin(torch.pi * (rate * time + start)) ** 2
    voice += 0.05 * torch.randn(count, RATE, generator=random)
    return (voice - voice.mean(1, keepdim=True)) / voice.std(1, keepdim=True), labels


def pictures(size: int, distraction: float = 0.25) -> Callable[[int, int], Made]:
    """What makes pictures of so many pixels each way: a coloured grating of the class, and one that means nothing.

    `distraction`: how strong the second may be beside the first.
    """

    def make(count: int, seed: int) -> Made:
        random, labels = _begin(count, seed)
        angle = labels * torch.pi / CLASSES + 0.05 * torch.randn(count, generator=random)
        colours = torch.randn(CLASSES, 3, generator=torch.Generator().manual_seed(0))
        picture = _grating(size, angle, 4.0 + labels % 3 * 3, random) * colours[labels][:, :, None, None]
        other = _grating(
            size, torch.pi * torch.rand(count, generator=random), 2 + 10 * torch.rand(count, generator=random), random
        )
        picture = picture + distraction * other * torch.randn(count, 3, generator=random)[:, :, None, None]
        light = 0.5 + torch.rand(count, 1, 1, 1, generator=random)
        return light * picture + 0.1 * torch.randn(count, 3, size, size, generator=random), labels

    return make


def _grating(size: int, angle: torch.Tensor, waves: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """A wave across each picture, (count, 1, size, size), with a phase by chance."""
    along = torch.arange(size) / size
    angle, waves = angle[:, None, None], waves[:, None, None]
    distance = torch.cos(angle) * along[None, None, :] + torch.sin(angle) * along[None, :, None]
    phase = torch.rand(len(angle), 1, 1, generator=random)
    return torch.sin(2 * torch.pi * (waves * distance + phase))[:, None]


def _begin(count: int, seed: int) -> tuple[torch.Generator, torch.Tensor]:
    """(a source of chance, labels)."""
    random = torch.Generator().manual_seed(seed)
    return random, torch.randint(CLASSES, (count,), generator=random)
