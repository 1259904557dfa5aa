"""`trimtab serve`: an optimised model tried from another program at once, and load-tested over the network."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.grpc
import tritonclient.http
from onnx import TensorProto, helper, numpy_helper

from engine.client import connect
from engine.protocol import OpenModel

pytestmark = pytest.mark.timeout(600)

TRIMTAB = Path(sys.executable).with_name("trimtab")


class Served:
    """`trimtab serve` as a process of its own, and what it printed."""

    def __init__(self, shell, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [str(TRIMTAB), "serve", *arguments],
            cwd=shell.directory,
            env=shell.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(shell.directory / "serve.log").open("w"),
            text=True,
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()
        assert "error" not in self.first_line, self.first_line

    def end(self, seconds: float = 60) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(seconds)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """x (batch, 6) → softmax of a linear layer (batch, 3)."""
    weight = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["hidden"]),
        helper.make_node("Softmax", ["hidden"], ["scores"], axis=1),
    ]
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weight, "weight")],
    )
    path = tmp_path / "tiny.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture
def opened(shell, graph: Path) -> Path:
    open_unmeasured(shell, graph)
    return graph


def open_unmeasured(shell, path: Path) -> None:
    """Make the model a session's baseline without the half minute that measuring it takes."""

    async def ask() -> None:
        client = await connect(shell.directory / f"{path.stem}.trimtab", client="test")
        async with contextlib.aclosing(client):
            await client.request(OpenModel(request=0, path=str(path), measure=False))
            async with asyncio.timeout(120), contextlib.aclosing(client.events()) as events:
                while not any(run.finished for run in client.state.runs):
                    await anext(events)
            assert client.state.variants, client.state.runs

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", shell.environment["XDG_STATE_HOME"])
        asyncio.run(ask())


def test_other_programs_get_the_models_numbers_and_load_can_be_sent(shell, opened: Path):
    served = Served(shell, "baseline", "--port", "0", "--max-batch-size", "8", "--json")
    try:
        said = json.loads(served.first_line)
        assert said["schema"] == "trimtab/serve/1"
        x = np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
        expected = onnxruntime.InferenceSession(opened).run(None, {"x": x})[0]

        over_http = tritonclient.http.InferenceServerClient(said["url"].removeprefix("http://"))
        tensor = tritonclient.http.InferInput("x", [5, 6], "FP32")
        tensor.set_data_from_numpy(x)
        assert np.allclose(over_http.infer("baseline", [tensor]).as_numpy("scores"), expected, atol=1e-6)

        over_grpc = tritonclient.grpc.InferenceServerClient(said["grpc_url"].removeprefix("grpc://"))
        message = tritonclient.grpc.InferInput("x", [5, 6], "FP32")
        message.set_data_from_numpy(x)
        assert np.allclose(over_grpc.infer("baseline", [message]).as_numpy("scores"), expected, atol=1e-6)

        for url in (said["url"], said["grpc_url"], said["url"] + "/predict"):
            load = ("--concurrency", "4", "--seconds", "2", "--warm-up-seconds", "0.5")
            found = shell.json("load-test", "baseline", "--url", url, *load)
            assert found["completed"] > 20
            assert found["failed"] == 0
            assert found["latency_ms"]["p50"] > 0
            told = any("its warm-up included" in note for note in found["notes"])
            assert told == (not url.endswith("/predict")), "only KServe v2 tells of its batches"
    finally:
        status = served.end()
    assert status == 0
    assert "Served " in (shell.directory / "serve.log").read_text()


@pytest.mark.slow
def test_the_printed_example_works_as_it_stands(shell, opened: Path):
    served = Served(shell, "baseline", "--port", "0")
    try:
        assert served.first_line.startswith("Serving baseline at http://127.0.0.1:")
        assert served.process.stdout is not None
        served.process.stdout.readline()
        example = served.process.stdout.readline().strip()
        answer = subprocess.run(["bash", "-c", example], capture_output=True, text=True, timeout=60)
        assert json.loads(answer.stdout)["outputs"]["scores"] == [pytest.approx([1 / 3] * 3)]
    finally:
        assert served.end() == 0


@pytest.mark.slow
def test_the_server_outlives_its_terminal_and_another_one_ends_it(shell, opened: Path):
    served = Served(shell, "baseline", "--port", "0", "--json")
    url = json.loads(served.first_line)["url"]
    served.process.kill()
    served.process.wait()
    client = tritonclient.http.InferenceServerClient(url.removeprefix("http://"))
    assert client.is_server_ready()
    assert shell.trimtab("stop").returncode == 1  # a job runs: it is said, not ended
    assert shell.trimtab("stop", "--cancel-jobs").returncode == 0
    deadline = time.monotonic() + 30
    while listens(url):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_request_under_way_is_answered_when_the_server_is_stopped(shell):
    (shell.directory / "slow.py").write_text(
        "import time, torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Linear(2, 2)\n"
        "    def forward(self, x):\n"
        "        time.sleep(float(x[0, 0]))\n"
        "        return self.layer(x)\n"
        "def load_model():\n    return Net()\n"
        "def example_input(batch_size):\n    return torch.zeros(batch_size, 2)\n"
    )
    open_unmeasured(shell, shell.directory / "slow.py")
    served = Served(shell, "baseline", "--port", "0", "--json")
    url = json.loads(served.first_line)["url"]
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, url], stdout=subprocess.PIPE, text=True, cwd=shell.directory
    )
    assert caller.stdout is not None
    assert caller.stdout.readline() == "sent\n"
    assert served.end() == 0
    assert caller.communicate(timeout=60)[0] == "200\n"


def listens(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


CALLER = """
import http.client, json, sys, time
connection = http.client.HTTPConnection(sys.argv[1].removeprefix("http://"), timeout=60)
connection.request("POST", "/predict", json.dumps({"inputs": {"x": [[3.0, 0.0]]}}))
time.sleep(0.5)  # until the server has surely read it
print("sent", flush=True)
print(connection.getresponse().status, flush=True)
"""


def test_wrong_usage_is_a_sentence(shell, tmp_path: Path):
    assert shell.trimtab("serve", "baseline").returncode == 2
    (tmp_path / "empty.trimtab").mkdir()
    done = shell.trimtab("serve", "baseline", "--port", "99999")
    assert (done.returncode, "--port" in done.stderr) == (2, True)
