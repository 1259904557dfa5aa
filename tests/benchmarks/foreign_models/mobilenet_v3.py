"""torchvision's MobileNetV3-small: depthwise convolutions, squeeze and excitation, hard swish; random weights.

Input `pictures`: float32 (batch, 3, 160, 160). Output: (batch, 10).
"""

import torch
from made_up_data import CLASSES, offered, pictures
from random_networks import fitted, torchvision
from torch import nn

make = pictures(160, distraction=0.05)


def load_model():
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v3_small(num_classes=CLASSES)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            _keep_information(layer)
    return fitted(network, network.classifier[-1], make, samples=1000, ridge=0.01)


def _keep_information(layer: nn.Conv2d) -> None:
    """Weights with which something is left of a picture after fifty layers: they turn channels, and smooth a little."""
    if layer.groups == 1:
        nn.init.orthogonal_(layer.weight)
    else:
        nn.init.normal_(layer.weight, 1 / 9, 0.15)


example_input, calibration_data, test_data = offered(make)
