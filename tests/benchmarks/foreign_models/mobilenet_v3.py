"""torchvision's MobileNetV3-small: depthwise convolutions, squeeze and excitation, hard swish; random weights.

Input `pictures`: float32 (batch, 3, 160, 160). Output: (batch, 10).
"""

import torch
from made_up_data import CLASSES, offered, pictures
from random_networks import fitted, torchvision

make = pictures(160)


def load_model():
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v3_small(num_classes=CLASSES)
    return fitted(network, network.classifier[-1], make)


example_input, calibration_data, test_data = offered(make)
