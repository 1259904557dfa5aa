"""Trains the sample models: `python sample_models/train.py [cnn|transformer|lstm|all]`.

Uses the shipped training images alone. The test images are looked at once, after the last epoch, and choose
nothing. Runs are seeded: the same machine, thread count and PyTorch version give nearly the same weights.
The arithmetic is bfloat16 (with AMX or AVX512-BF16 about 2.5 times as fast as float32), the weights are
float32 all along and rounded to FP16 for shipping. How long it takes: see README.md.

`--prepare-data` makes data/ anew from the Debian package `dataset-fashion-mnist`.
"""

import argparse
import gzip
import lzma
import time
from dataclasses import dataclass
from pathlib import Path

import fashion_mnist
import lstm
import numpy as np
import residual_cnn
import torch
import vision_transformer
from safetensors.torch import save
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

DEBIAN_PACKAGE = Path("/usr/share/datasets/fashion-mnist")
TRAINING_IMAGES = 30_000
"""Half of the original ones: all of them would take sample_models/ past 25 MB."""


@dataclass(frozen=True)
class Schedule:
    """One training run. The rate rises for the first part, then falls along a cosine to nothing."""

    model_file: object
    """The module with load_model(), train_data(), test_data() and WEIGHTS."""
    network: type[nn.Module]
    epochs: int
    peak_rate: float
    weight_decay: float
    batch_size: int = 128
    optimizer: str = "adamw"
    """Or "sgd": with Nesterov momentum 0.9."""
    label_smoothing: float = 0.05
    seed: int = 0


SCHEDULES = {
    "cnn": Schedule(
        residual_cnn, residual_cnn.ResidualNetwork, epochs=18, peak_rate=0.1, weight_decay=5e-4, optimizer="sgd"
    ),
    "transformer": Schedule(
        vision_transformer, vision_transformer.VisionTransformer, epochs=14, peak_rate=1e-3, weight_decay=0.05
    ),
    "lstm": Schedule(lstm, lstm.RowLSTM, epochs=12, peak_rate=2e-3, weight_decay=0.01),
}


def train(schedule: Schedule) -> nn.Module:
    """Train from scratch and return the network in evaluation mode."""
    torch.manual_seed(schedule.seed)
    network = schedule.network().train()
    if any(isinstance(layer, nn.Conv2d) for layer in network.modules()):
        network = network.to(memory_format=torch.channels_last)  # a quarter faster in bfloat16
    batches = fashion_mnist.train_batches(
        schedule.model_file.SAMPLE_SHAPE, batch_size=schedule.batch_size, seed=schedule.seed, validation=False
    )
    optimizer = make_optimizer(network, schedule)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.peak_rate, total_steps=schedule.epochs * len(batches), pct_start=0.2, cycle_momentum=False
    )
    loss_function = nn.CrossEntropyLoss(label_smoothing=schedule.label_smoothing)
    start = time.monotonic()
    for epoch in range(schedule.epochs):
        losses, right, seen = 0.0, 0, 0
        for inputs, labels in batches:
            # The fused attention's backward pass takes 43 ms a layer in bfloat16, 58 % of a step: PyTorch 2.13.
            with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                scores = network(inputs)
            loss = loss_function(scores.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 2.0)
            optimizer.step()
            rate.step()
            losses += loss.item() * len(labels)
            right += (scores.argmax(1) == labels).sum().item()
            seen += len(labels)
        print(
            f"epoch {epoch + 1:2}/{schedule.epochs}  loss {losses / seen:.4f}  training accuracy {right / seen:.4f}"
            f"  {time.monotonic() - start:.0f} s",
            flush=True,
        )
    return network.eval()


def make_optimizer(network: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Weight decay falls on matrices and filters only, not on biases, norms and tokens."""
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(groups, schedule.peak_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, schedule.peak_rate)


def ship(network: nn.Module, path: Path) -> None:
    """FP16 for matrices and filters; vectors (biases, batch-norm statistics) stay as they are: they are few."""
    path.parent.mkdir(exist_ok=True)
    tensors = {
        name: value.to(torch.float16 if value.ndim > 1 else value.dtype).contiguous()
        for name, value in network.state_dict().items()
    }
    path.write_bytes(save(tensors))


@torch.inference_mode()
def test_accuracy(model_file) -> float:
    """Of what is shipped: the weights as saved, in FP32, on the 10,000 test images."""
    network = model_file.load_model()
    right = [network(inputs).argmax(1) == labels for inputs, labels in model_file.test_data()]
    return torch.cat(right).float().mean().item()


def prepare_data() -> None:
    """Debian's idx.gz files → data/*.xz: all test images and the first `TRAINING_IMAGES` training images."""
    fashion_mnist.DATA.mkdir(exist_ok=True)
    write("test-images", read_idx("t10k-images-idx3-ubyte.gz", header_bytes=16))
    write("test-labels", read_idx("t10k-labels-idx1-ubyte.gz", header_bytes=8))
    write("train-images", read_idx("train-images-idx3-ubyte.gz", header_bytes=16)[: TRAINING_IMAGES * 28 * 28])
    write("train-labels", read_idx("train-labels-idx1-ubyte.gz", header_bytes=8)[:TRAINING_IMAGES])


def read_idx(name: str, header_bytes: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress((DEBIAN_PACKAGE / name).read_bytes())[header_bytes:], np.uint8)


def write(name: str, values: np.ndarray) -> None:
    """xz, told that each byte is best predicted from the last one: 15 % smaller than gzip, 20 ms per 1,000 images."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
    packed = lzma.compress(values.tobytes(), lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)
    (fashion_mnist.DATA / f"{name}.xz").write_bytes(packed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="all", choices=[*SCHEDULES, "all"])
    parser.add_argument("--prepare-data", action="store_true", help="make data/ from the Debian package, train nothing")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.prepare_data:
        return prepare_data()
    torch.set_num_threads(arguments.threads)
    for name in SCHEDULES if arguments.model == "all" else [arguments.model]:
        schedule = SCHEDULES[name]
        ship(train(schedule), schedule.model_file.WEIGHTS)
        print(f"{name}: test accuracy {test_accuracy(schedule.model_file):.4f}", flush=True)


if __name__ == "__main__":
    main()
