"""Hugging Face's Swin transformer: attention in windows that are shifted, three stages of two layers; random weights.

Input `pixel_values`: float32 (batch, 3, 112, 112). Output: (batch, 10).
"""

import torch
from made_up_data import CLASSES, offered, pictures
from random_networks import fitted
from transformers import SwinConfig, SwinForImageClassification

SIZE, WIDTH = 112, 64

make = pictures(SIZE)


def load_model():
    torch.manual_seed(0)
    config = SwinConfig(
        image_size=SIZE,
        embed_dim=WIDTH,
        depths=(2, 2, 2),
        num_heads=(2, 4, 8),
        num_labels=CLASSES,
        initializer_range=WIDTH**-0.5,  # so that a signal neither dies nor grows from layer to layer
    )
    network = SwinForImageClassification(config)
    return fitted(network, network.classifier, make)


example_input, calibration_data, test_data = offered(make)
