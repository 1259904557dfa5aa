"""A small convolutional network with data it can be right about: milliseconds to open, export, quantize and measure."""

import torch
from torch import nn

SAMPLES = 1200


class TinyCnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(32, 10)

    def forward(self, image):
        return self.classifier(self.features(image).mean(dim=(2, 3)))


def load_model():
    torch.manual_seed(0)
    return TinyCnn().eval()


def example_input(batch_size):
    return _images(0, batch_size)


def calibration_data():
    return [(_images(100 + index, 32), torch.zeros(32, dtype=torch.long)) for index in range(4)]


def test_data():
    """Labels are what the network itself says, so that the baseline is right on every image with a clear answer."""
    model = load_model()
    images = _images(1, 2 * SAMPLES)
    with torch.no_grad():
        scores = model(images)
    best = scores.topk(2, dim=1).values
    clear = (best[:, 0] - best[:, 1]).argsort(descending=True)[:SAMPLES]
    labels = scores.argmax(dim=1)
    return [(images[part], labels[part]) for part in clear.split(200)]


def _images(seed, count):
    """Blobs of one colour on noise: spread out enough that INT8 keeps the answers."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(count, 3, 1, 1, generator=generator) * 2
    return base + torch.randn(count, 3, 16, 16, generator=generator)
