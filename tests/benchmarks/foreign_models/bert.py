"""Hugging Face's BERT as a classifier of texts, in the size of BERT-mini: 4 layers of width 256, random weights.

Inputs `input_ids` and `attention_mask`: int64 (batch, 64), texts of 16 to 64 words, padded. Output: (batch, 10).
"""

import torch
from made_up_data import CLASSES, VOCABULARY, offered, texts
from random_networks import fitted
from transformers import BertConfig, BertForSequenceClassification

WIDTH = 256


def load_model():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
        num_labels=CLASSES,
        initializer_range=WIDTH**-0.5,  # so that a signal neither dies nor grows from layer to layer
    )
    network = BertForSequenceClassification(config)
    return fitted(network, network.classifier, texts)


example_input, calibration_data, test_data = offered(texts)
