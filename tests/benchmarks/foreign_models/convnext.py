"""Hugging Face's ConvNeXt, in the size of its smallest kind: convolutions of 7 by 7, layer norms, GELU; random weights.

Input `pixel_values`: float32 (batch, 3, 96, 96). Output: (batch, 10).
"""

import torch
from made_up_data import CLASSES, offered, pictures
from random_networks import fitted
from transformers import ConvNextConfig, ConvNextForImageClassification

SIZE = 96

make = pictures(SIZE)


def load_model():
    torch.manual_seed(0)
    config = ConvNextConfig(
        hidden_sizes=(40, 80, 160, 320),
        depths=(2, 2, 6, 2),
        image_size=SIZE,
        num_labels=CLASSES,
        initializer_range=0.08,
        layer_scale_init_value=0.3,  # trained ones are as large; what it begins with would leave only the short cuts
    )
    network = ConvNextForImageClassification(config)
    return fitted(network, network.classifier, make)


example_input, calibration_data, test_data = offered(make)
