"""A network whose layer names carry markup, a terminal escape that writes the clipboard, a formula and a table bar."""

import torch
from torch import nn

HOSTILE = "conv[/]x\x1b]52;c;AAAA\x07"
FORMULA = '=HYPERLINK("x")|[b]'


class Hostile(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module(HOSTILE, nn.Conv2d(3, 8, 3))
        self.add_module(FORMULA, nn.Linear(8, 4))

    def forward(self, image):
        features = getattr(self, HOSTILE)(image).relu().mean(dim=(2, 3))
        return getattr(self, FORMULA)(features)


def load_model():
    torch.manual_seed(0)
    return Hostile().eval()


def example_input(batch_size):
    generator = torch.Generator().manual_seed(batch_size)
    return torch.randn(batch_size, 3, 12, 12, generator=generator)


def calibration_data():
    return [(example_input(16), torch.zeros(16, dtype=torch.long))]
