"""torchvision's ResNet-18; random weights.

Input `pictures`: float32 (batch, 3, 96, 96). Output: (batch, 10).
"""

import torch
from made_up_data import CLASSES, offered, pictures
from random_networks import fitted, torchvision

make = pictures(96)


def load_model():
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=CLASSES)
    return fitted(network, network.fc, make)


example_input, calibration_data, test_data = offered(make)
