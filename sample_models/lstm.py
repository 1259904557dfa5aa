"""A recurrent network for Fashion-MNIST: a two-layer bidirectional LSTM that reads an image row by row.

Input `rows`: float32 (batch, 28 rows, 28 pixels), normalised. Output: (batch, 10) class scores (logits).
1.67 million parameters, 46 million multiply-adds per image; 88.15 % of the 10,000 test images right.
"""

from pathlib import Path

import fashion_mnist
from safetensors.torch import load_file
from torch import nn

WEIGHTS = Path(__file__).parent / "weights" / "lstm.safetensors"
SAMPLE_SHAPE = (28, 28)


class RowLSTM(nn.Module):
    """Each row of pixels is one step; the mean over the steps is classified."""

    def __init__(self, hidden=224, layers=2):
        super().__init__()
        self.lstm = nn.LSTM(
            28, hidden, layers, batch_first=True, bidirectional=True, dropout=0.2 if layers > 1 else 0.0
        )
        self.head = nn.Linear(2 * hidden, len(fashion_mnist.CLASSES))

    def forward(self, rows):
        states, _ = self.lstm(rows)
        return self.head(states.mean(dim=1))


def load_model():
    network = RowLSTM()
    network.load_state_dict(load_file(WEIGHTS))  # FP16 on disk; copying into the network makes it FP32
    return network.eval()


def student_model():
    """Untrained, 99,000 parameters, for distillation: one layer."""
    return RowLSTM(hidden=96, layers=1)


def example_input(batch_size):
    return fashion_mnist.example(SAMPLE_SHAPE, batch_size)


def train_data():
    return fashion_mnist.train_batches(SAMPLE_SHAPE)


def validation_data():
    return fashion_mnist.validation_batches(SAMPLE_SHAPE)


def calibration_data():
    return fashion_mnist.calibration_batches(SAMPLE_SHAPE)


def test_data():
    return fashion_mnist.test_batches(SAMPLE_SHAPE)


def raw_inputs():
    """What a request carries: one uint8 image (28, 28) after the other."""
    return iter(fashion_mnist.images("test"))


def preprocess(raw):
    """One uint8 image (28, 28), or several (n, 28, 28) → float32 (n, 28, 28)."""
    return fashion_mnist.normalise(raw).reshape(-1, *SAMPLE_SHAPE)
