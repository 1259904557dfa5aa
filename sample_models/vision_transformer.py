"""A vision transformer for Fashion-MNIST: 49 patches of 4×4 pixels and a class token, 6 pre-norm layers.

Input `images`: float32 (batch, 1, 28, 28), normalised. Output: (batch, 10) class scores (logits).
1.00 million parameters, 53 million multiply-adds per image; 87.02 % of the 10,000 test images right.
"""

from pathlib import Path

import fashion_mnist
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

WEIGHTS = Path(__file__).parent / "weights" / "vision_transformer.safetensors"
SAMPLE_SHAPE = (1, 28, 28)


class Attention(nn.Module):
    """Multi-head self-attention; (batch, tokens, width) → the same shape."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TransformerLayer(nn.Module):
    """Attention and a two-layer perceptron, each behind its LayerNorm and beside a short cut."""

    def __init__(self, width, heads, expansion):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches → tokens, plus a class token and learned positions → layers → scores from the class token."""

    def __init__(self, width=128, depth=6, heads=4, expansion=3, patch=4):
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 1 + (28 // patch) ** 2, width) * 0.02)
        self.layers = nn.Sequential(*(TransformerLayer(width, heads, expansion) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(fashion_mnist.CLASSES))

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1) + self.positions
        return self.head(self.norm(self.layers(tokens)[:, 0]))


def load_model():
    network = VisionTransformer()
    network.load_state_dict(load_file(WEIGHTS))  # FP16 on disk; copying into the network makes it FP32
    return network.eval()


def student_model():
    """Untrained, 130,000 parameters, for distillation: half as wide, half as deep."""
    return VisionTransformer(width=64, depth=3, heads=2)


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
    """One uint8 image (28, 28), or several (n, 28, 28) → float32 (n, 1, 28, 28)."""
    return fashion_mnist.normalise(raw).reshape(-1, *SAMPLE_SHAPE)
