"""What live curves and progress cost the training: the same steps with every message sent, and with none.

    python tests/benchmarks/bench_training.py

Both arms train the same small network on the same batches, taking turns. The live arm encodes every progress message
and every point of the curves and writes it to a socket that another thread reads, as a worker does without its
thinning. The figure is time per step, live over silent; 1.00 means that watching is free. Goal: surely below 1.02.
"""

import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "engine"), str(REPOSITORY / "tests" / "benchmarks")]

from goals import Goals, arguments  # noqa: E402
from intervals import ratio  # noqa: E402
from learning_models import CNN_FILE, make_job, open_text  # noqa: E402

from engine import training  # noqa: E402
from engine.protocol import encode_frame  # noqa: E402
from engine.training import loop  # noqa: E402
from engine.training.data import TrainingData  # noqa: E402
from engine.training.objectives import Objective  # noqa: E402

ROUNDS = 12
EPOCHS = 4


LIMIT = 1.02


def main() -> int:
    """Train in turns, print the ratio."""
    arguments(__doc__, "2 minutes").parse_args()
    reader, writer = socket.socketpair()
    threading.Thread(target=_drain, args=(reader,), daemon=True).start()
    with tempfile.TemporaryDirectory() as place:
        model = open_text(Path(place), CNN_FILE)
        data, objective = TrainingData(model), Objective(model)

        def seconds_a_step(live: bool) -> float:
            job, _ = make_job(model, Path(place))
            job.send = (lambda message: writer.sendall(encode_frame(message))) if live else (lambda message: None)
            loop.POINT_SECONDS = 0.25 if live else 1e9
            plan = training.Plan(epochs=EPOCHS, learning_rate=1e-3, precision="float32")
            start = time.perf_counter()
            outcome = training.train(model.module(), data, objective, plan, training.Course(job))
            return (time.perf_counter() - start) / outcome.steps

        seconds_a_step(True)
        pairs = [(seconds_a_step(True), seconds_a_step(False)) for _ in range(ROUNDS)]
    ratios = sorted(live / silent for live, silent in pairs)
    print(f"{statistics.median(silent for _, silent in pairs) * 1e3:.2f} ms a step without messages")
    print(f"live / silent: median {statistics.median(ratios):.3f}, quartiles {ratios[ROUNDS // 4]:.3f}", end="–")
    print(f"{ratios[-1 - ROUNDS // 4]:.3f} ({ROUNDS} pairs)")
    writer.close()
    goals = Goals()
    found = ratio([live for live, _ in pairs], [silent for _, silent in pairs])
    goals.at_most(f"a step with live curves takes at most {LIMIT:g} of one without", found, LIMIT)
    return goals.judged()


def _drain(reader: socket.socket) -> None:
    while reader.recv(65536):
        pass


if __name__ == "__main__":
    sys.exit(main())
