"""Hugging Face's Wav2Vec2 as a classifier of sounds: 7 convolutions over the samples, 4 layers of width 256.

Input `input_values`: float32 (batch, 16000), one second. Output: (batch, 10). Random weights.
"""

import torch
from made_up_data import CLASSES, offered, sounds
from random_networks import fitted
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

WIDTH = 256


def load_model():
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
        conv_dim=(128,) * 7,
        num_labels=CLASSES,
        initializer_range=WIDTH**-0.5,  # so that a signal neither dies nor grows from layer to layer
    )
    network = Wav2Vec2ForSequenceClassification(config)
    return fitted(network, network.classifier, sounds)


example_input, calibration_data, test_data = offered(sounds)
