"""The HTTP door: what other programs may rely on, and what hostile ones get."""

import asyncio
import gzip
import json
import socket
import threading
from types import SimpleNamespace
from urllib.parse import urlsplit

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from engines import wait_until
from google.protobuf import json_format
from served_models import F32, LIMIT, SCORES, WORDS, RunningServer, serving
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from engine.measurements.load_test.server_http import HttpChannel
from engine.protocol import Gpu, GpuSample, TelemetrySample
from engine.serving.tensors import ServedTensor

ROW = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


def triton_input(array: np.ndarray, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


# --- what it offers ----------------------------------------------------------------------------------


def test_health_and_metadata_are_those_of_the_protocol(server: RunningServer):
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("double")
    assert client.get_server_metadata()["name"] == "trimtab"
    assert client.get_model_metadata("double", "1") == {
        "name": "double",
        "versions": ["1"],
        "platform": "test",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }
    assert client.get_inference_statistics() == client.get_inference_statistics("double")
    assert [one["name"] for one in client.get_model_repository_index()] == ["double"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_tritonclient_gets_the_models_numbers(server: RunningServer, binary_in, binary_out):
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    asked = None if binary_out is None else [triton.InferRequestedOutput("y", binary_data=binary_out)]
    result = client.infer("double", [triton_input(x, binary_in)], outputs=asked, request_id="seven")
    assert np.array_equal(result.as_numpy("y"), x * 2)
    assert result.get_response()["id"] == "seven"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [("INT64", np.int64), ("FP16", np.float16), ("BF16", ml_dtypes.bfloat16), ("FP64", np.float64), ("BOOL", np.bool_)],
)
def test_every_type_goes_both_ways_through_both_doors(datatype, dtype, binary_in, binary_out):
    values = np.array([[0, 1, 1], [1, 0, 1]]) if datatype == "BOOL" else np.array([[-2, 0, 3], [1, 2, 96]])
    x = values.astype(dtype)
    tensors = (ServedTensor("x", np.dtype(dtype), (3,)),), (ServedTensor("y", np.dtype(dtype), (3,)),)
    if datatype in ("FP16", "BF16"):  # tritonclient has neither in its JSON
        binary_in = binary_out = True
    with serving(lambda inputs: {"y": inputs["x"][:, ::-1]}, *tensors) as server:
        for client, port in ((triton, server.port), (triton_grpc, server.grpc_port)):
            tensor = client.InferInput("x", [2, 3], datatype)
            if client is triton:
                tensor.set_data_from_numpy(x, binary_data=binary_in)
                asked = [client.InferRequestedOutput("y", binary_data=binary_out)]
            else:
                tensor.set_data_from_numpy(x)
                asked = [client.InferRequestedOutput("y")]
            result = client.InferenceServerClient(f"127.0.0.1:{port}").infer("double", [tensor], outputs=asked)
            found = result.as_numpy("y")
            assert found.tolist() == values[:, ::-1].tolist()


def test_a_compressed_request_is_understood(server: RunningServer):
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    x = np.ones((1, 3), np.float32)
    result = client.infer("double", [triton_input(x)], request_compression_algorithm="gzip")
    assert np.array_equal(result.as_numpy("y"), x * 2)


def test_plain_json_needs_no_client_at_all(server: RunningServer):
    status, answer = server.ask("POST", "/predict", '{"inputs": {"x": [[1, 2, 3], [4, 5, 6.5]]}}')
    assert (status, answer) == (200, {"model": "double", "outputs": {"y": [[2, 4, 6], [8, 10, 13]]}})


def test_open_axes_and_integers_are_taken_as_they_come():
    def count(inputs):
        words = inputs["words"]
        return {"scores": np.stack([words.sum(1), (words > 0).sum(1)], 1).astype(np.float32)}

    with serving(count, (WORDS,), (SCORES,), name="prune/50%") as server:
        for row in ([1, 2], [3, 0, 4, 5, 6]):
            status, answer = server.ask("POST", "/predict", json.dumps({"inputs": {"words": [row]}}))
            assert (status, answer["outputs"]["scores"][0]) == (200, [sum(row), sum(1 for word in row if word)])
        client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
        assert client.is_model_ready("prune/50%")
        assert client.get_model_metadata("prune/50%")["inputs"][0]["shape"] == [-1, -1]


def test_a_load_test_keeps_what_stands_behind_the_path():
    url = urlsplit("http://127.0.0.1/predict?key=a%20b&model=x")
    sent = HttpChannel(url, None).encode("double", {"x": np.ones((1, 3), np.float32)})
    assert sent.startswith(b"POST /predict?key=a%20b&model=x HTTP/1.1\r\n")
    hostile = HttpChannel(urlsplit("http://127.0.0.1/predict?a=b c\u00e9"), None).encode("double", {})
    assert hostile.startswith(b"POST /predict?a=b%20c%C3%A9 HTTP/1.1\r\n")


def test_what_is_no_number_is_null_in_json():
    with serving(lambda inputs: {"y": np.float32([[np.nan, np.inf, -np.inf]])}) as server:
        assert server.infer({**ROW, "data": [0, 1, -1]})[1]["outputs"][0]["data"] == [None] * 3


def test_metrics_count_what_happened_under_tritons_names():
    with serving() as server:
        for _ in range(3):
            assert server.infer({**ROW, "shape": [2, 3], "data": [1] * 6})[0] == 200
        server.infer({**ROW, "shape": [2, 9]})
        text = server.ask("GET", "/metrics")[1].decode()
        labels = '{model="double",version="1"}'
        assert f"nv_inference_request_success{labels} 3\n" in text
        assert 'nv_inference_request_failure{model="double",version="1",reason="OTHER"} 1\n' in text
        assert f"nv_inference_count{labels} 6\n" in text
        assert f"nv_inference_exec_count{labels} 3\n" in text
        assert f"nv_inference_compute_output_duration_us{labels} " in text
        assert "\nnv_cpu_memory_used_bytes " in text
        assert 'trimtab_batch_size_bucket{model="double",version="1",le="2"} 3\n' in text
        for line in text.splitlines():
            assert line.startswith("#") or float(line.rpartition(" ")[2]) >= 0
        entry = server.ask("GET", "/v2/models/double/stats")[1]["model_stats"][0]
        assert entry["inference_stats"]["success"]["count"] == 3
        assert entry["inference_stats"]["compute_output"]["count"] == 3
        assert entry["inference_stats"]["compute_output"]["ns"] > 0
        assert entry["batch_stats"][0]["compute_infer"]["count"] == 3


def test_gpus_are_among_the_metrics_and_what_their_driver_does_not_tell_is_not(monkeypatch):
    gpus = (
        GpuSample(index=0, utilisation=0.5, memory_used_bytes=2**30, memory_total_bytes=2**34, power_w=71.5),
        GpuSample(index=1, utilisation=0.0, status="GPU is lost"),
    )
    known = tuple(Gpu(index=index, uuid=f"GPU-{index}", name="T4", power_limit_w=70.0) for index in (0, 1))
    sample = TelemetrySample(time=0.0, cpu=0.25, memory_used_bytes=1, memory_total_bytes=2, gpus=gpus)
    hardware = SimpleNamespace(gpus=known)
    monkeypatch.setattr("engine.serving.machine.Telemetry", lambda: SimpleNamespace(sample=lambda: sample))
    monkeypatch.setattr("engine.serving.machine.read_hardware", lambda: hardware)
    with serving() as server:
        text = server.ask("GET", "/metrics")[1].decode()
    assert 'nv_gpu_utilization{gpu_uuid="GPU-0"} 0.5\nnv_gpu_utilization{gpu_uuid="GPU-1"} 0\n' in text
    assert 'nv_gpu_memory_used_bytes{gpu_uuid="GPU-0"} 1073741824\n' in text
    assert 'nv_gpu_power_usage{gpu_uuid="GPU-0"} 71.5\n' in text
    assert 'nv_gpu_power_limit{gpu_uuid="GPU-0"} 70\n' in text
    assert 'nv_gpu_power_usage{gpu_uuid="GPU-1"}' not in text
    assert "nv_energy_consumption" not in text
    assert "\nnv_cpu_utilization 0.25\n" in text


def test_counts_stay_right_when_more_runs_end_unseen_than_are_remembered(monkeypatch):
    """With 65,536 remembered runs this takes half a minute of nobody asking: here 64 are remembered."""
    for module in ("engine.batching.statistics", "engine.serving.served"):
        monkeypatch.setattr(f"{module}.CAPACITY", 64)
    with serving(max_batch_size=1) as server:
        for asked in (150, 300, 450):
            for _ in range(150):
                asyncio.run_coroutine_threadsafe(server.model.infer({"x": np.ones((1, 3), np.float32)}), server.loop)
            wait_until(lambda asked=asked: server.model.succeeded == asked)
            server.ask("GET", "/v2/models/double/stats")
            entry = server.ask("GET", "/v2/models/double/stats")[1]["model_stats"][0]
            assert entry["execution_count"] == asked
            assert entry["inference_stats"]["compute_infer"]["count"] == asked
            assert entry["batch_stats"][0]["compute_infer"]["count"] == asked
            taken = server.model.batcher.statistics.totals().compute_seconds
            assert 0 < entry["inference_stats"]["compute_infer"]["ns"] / 1e9 < taken * 5


def test_the_configuration_is_what_triton_would_say_over_both_doors():
    policy = {"max_wait_ms": 2.5, "priority_levels": 3, "default_priority": 2, "default_timeout_ms": 50.0}
    with serving(preferred_batch_sizes=(4, 8), max_queue_size=9, instances=1, **policy) as server:
        found = triton.InferenceServerClient(f"127.0.0.1:{server.port}").get_model_config("double")
        assert found == {
            "name": "double",
            "platform": "test",
            "backend": "testing",
            "max_batch_size": 8,
            "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}],
            "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [3]}],
            "instance_group": [{"name": "double", "kind": "KIND_AUTO", "count": 1}],
            "dynamic_batching": {
                "preferred_batch_size": [4, 8],
                "max_queue_delay_microseconds": 2500,
                "priority_levels": 3,
                "default_priority_level": 2,
                "default_queue_policy": {
                    "timeout_action": "REJECT",
                    "default_timeout_microseconds": 50_000,
                    "allow_timeout_override": True,
                    "max_queue_size": 9,
                },
            },
        }
        over_grpc = triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}").get_model_config("double")
        assert over_grpc.config == json_format.ParseDict(found, model_config_pb2.ModelConfig())


def test_a_model_that_takes_one_number_of_rows_says_so_in_its_configuration():
    with serving(fixed_rows=8) as server:
        found = triton.InferenceServerClient(f"127.0.0.1:{server.port}").get_model_config("double")
        assert (found["max_batch_size"], found["input"][0]["dims"]) == (0, [8, 3])
        assert "dynamic_batching" not in found


@pytest.mark.parametrize("over", ["http", "grpc"])
def test_an_urgent_request_overtakes_and_a_level_that_is_none_is_the_default(over):
    order, release = [], threading.Event()

    def one_by_one(inputs):
        order.append(int(inputs["x"][0, 0]))
        release.wait(20)
        return {"y": inputs["x"]}

    client = triton if over == "http" else triton_grpc

    with serving(one_by_one, max_batch_size=1, priority_levels=3, default_priority=2) as server:
        port = server.port if over == "http" else server.grpc_port

        def send(number: int, priority: int) -> None:
            tensor = client.InferInput("x", [1, 3], "FP32")
            tensor.set_data_from_numpy(np.full((1, 3), number, np.float32))
            client.InferenceServerClient(f"127.0.0.1:{port}").infer("double", [tensor], priority=priority)

        threads = []
        for number, priority in enumerate((0, 3, 0, 9, 2, 1)):
            threads.append(threading.Thread(target=send, args=(number, priority)))
            threads[-1].start()
            wait_until(lambda: server.model.batcher.statistics.totals().accepted == len(threads))
            wait_until(lambda: order)
        release.set()
        for thread in threads:
            thread.join()
    assert order == [0, 5, 2, 3, 4, 1]


@pytest.mark.parametrize("priority", ["high", -1, 1.5, True])
def test_a_priority_that_is_no_number_is_refused(server: RunningServer, priority):
    body = json.dumps({"inputs": [ROW], "parameters": {"priority": priority}})
    status, sentence = server.refusal("/v2/models/double/infer", body)
    assert (status, "priority" in sentence) == (400, True)


def test_a_sender_may_shorten_the_time_limit_but_not_lengthen_it():
    release = threading.Event()

    def stuck(inputs):
        release.wait(20)
        return {"y": inputs["x"]}

    with serving(stuck, max_batch_size=1, default_timeout_ms=100.0) as server:
        first = threading.Thread(target=server.infer, args=(ROW,))
        first.start()
        wait_until(lambda: server.model.batcher.statistics.totals().in_system == 1 and not server.model.batcher.depth)
        assert server.infer(ROW, parameters={"timeout": 1_000})[0] == 504
        assert server.infer(ROW, parameters={"timeout": 10_000_000})[0] == 504
        release.set()
        first.join()


def test_requests_that_come_together_run_together():
    sizes = []
    busy = threading.Event()

    def slow(inputs):
        sizes.append(len(inputs["x"]))
        busy.wait(10)
        return {"y": inputs["x"] * 2}

    with serving(slow) as server:
        threads = [threading.Thread(target=server.infer, args=(ROW,)) for _ in range(6)]
        threads[0].start()
        wait_until(lambda: sizes == [1])
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: server.model.batcher.depth == 5)
        busy.set()
        for thread in threads:
            thread.join()
    assert sizes == [1, 5]


# --- how it refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "status", "word"),
    [
        ({**ROW, "name": "z"}, 400, "no input 'z'"),
        ({**ROW, "datatype": "FP64"}, 400, "FP64"),
        ({**ROW, "datatype": "BYTES"}, 400, "BYTES"),
        ({**ROW, "shape": [1, 4]}, 400, "shape"),
        ({**ROW, "shape": [9, 3]}, 413, "largest batch"),
        ({**ROW, "shape": [2**40, 3]}, 413, "largest batch"),
        ({**ROW, "shape": [2**80, 3]}, 413, "largest batch"),
        ({**ROW, "shape": "1,3"}, 400, "cannot be read"),
        ({**ROW, "data": [1, 2]}, 400, "2 values"),
        ({**ROW, "data": "AAAA"}, 400, "values"),
        ({"name": "x", "datatype": "FP32", "shape": [1, 3]}, 400, "neither data"),
        ({**ROW, "parameters": {"shared_memory_region": "r"}}, 400, "Shared memory"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_with_the_reason(server: RunningServer, tensor, status, word):
    found, sentence = server.refusal("/v2/models/double/infer", json.dumps({"inputs": [tensor]}))
    assert found == status
    assert word in sentence


def test_missing_double_and_unknown_parts_are_named(server: RunningServer):
    path = "/v2/models/double/infer"
    assert "missing" in server.refusal(path, '{"inputs": []}')[1]
    assert "twice" in server.refusal(path, json.dumps({"inputs": [ROW, ROW]}))[1]
    assert "no output 'q'" in server.refusal(path, json.dumps({"inputs": [ROW], "outputs": [{"name": "q"}]}))[1]
    assert "sequences" in server.refusal(path, json.dumps({"inputs": [ROW], "parameters": {"sequence_id": 4}}))[1]
    assert server.refusal("/v2/nothing", "{}")[0] == 404
    assert server.ask("GET", "/predict")[0] == 405


def test_a_model_that_is_not_here_is_404_wherever_it_is_asked_for(server: RunningServer):
    for model in ("other", "double/versions/2"):
        for path in ("", "/ready", "/stats", "/config"):
            status, answer = server.ask("GET", f"/v2/models/{model}{path}")
            assert status == 404
            assert "There is no model 'other'" in answer["error"] or "has the version 1 only" in answer["error"]
        assert server.refusal(f"/v2/models/{model}/infer", "{}")[0] == 404
    with pytest.raises(InferenceServerException, match="There is no model 'other' here"):
        triton.InferenceServerClient(f"127.0.0.1:{server.port}").get_model_metadata("other")


def test_inputs_with_different_numbers_of_rows_are_the_senders_mistake():
    two = (ServedTensor("x", F32, (3,)), ServedTensor("z", F32, (1,)))
    with serving(lambda inputs: {"y": inputs["x"] + inputs["z"]}, two) as server:
        z = {"name": "z", "datatype": "FP32", "shape": [2, 1], "data": [1, 2]}
        sentence = "Input z has 2 rows, input x has 1: all inputs of a request have as many."
        body = json.dumps({"inputs": [ROW, z]})
        assert server.refusal("/v2/models/double/infer", body) == (400, sentence)
        assert server.refusal("/predict", '{"inputs": {"x": [[1, 2, 3]], "z": [[1], [2]]}}') == (400, sentence)
        tensors = [triton_grpc.InferInput("x", [1, 3], "FP32"), triton_grpc.InferInput("z", [2, 1], "FP32")]
        tensors[0].set_data_from_numpy(np.ones((1, 3), np.float32))
        tensors[1].set_data_from_numpy(np.ones((2, 1), np.float32))
        with pytest.raises(InferenceServerException, match=sentence) as caught:
            triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}").infer("double", tensors)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        text = server.ask("GET", "/metrics")[1].decode()
        assert 'reason="BACKEND"} 0\n' in text
        assert 'reason="OTHER"} 3\n' in text


def binary(sizes: list[object], data: bytes, shape: tuple[int, ...] = (1, 3), length: str | None = None):
    tensors = [
        {"name": "x", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": size}} for size in sizes
    ]
    head = json.dumps({"inputs": tensors}).encode()
    return head + data, {"Inference-Header-Content-Length": length or str(len(head))}


@pytest.mark.parametrize(
    ("sizes", "data", "shape"),
    [
        ([12], b"\0" * 11, (1, 3)),
        ([12], b"\0" * 13, (1, 3)),
        ([11], b"\0" * 12, (1, 3)),
        ([2**62], b"\0" * 12, (1, 3)),
        ([-1], b"\0" * 12, (1, 3)),
        (["12"], b"\0" * 12, (1, 3)),
        ([True], b"\0" * 12, (1, 3)),
        ([12.0], b"\0" * 12, (1, 3)),
        ([12], b"\0" * 12, (8, 3)),
        ([0], b"", (1, 3)),
    ],
)
def test_sizes_that_headers_claim_are_not_believed(server: RunningServer, sizes, data, shape):
    body, headers = binary(sizes, data, shape)
    assert server.refusal("/v2/models/double/infer", body, headers)[0] == 400


@pytest.mark.parametrize("length", ["-1", "999999", "1e3", "x", "9" * 40, "²"])
def test_a_header_length_that_is_none_is_refused(server: RunningServer, length):
    body, _ = binary([12], b"\0" * 12)
    raw = (
        f"POST /v2/models/double/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Inference-Header-Content-Length: {length}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    assert server.talk(raw.encode() + body).startswith(b"HTTP/1.1 400 ")


def test_a_body_over_the_limit_is_refused_whether_it_says_so_or_not(server: RunningServer):
    path, too_long = "/v2/models/double/infer", b" " * (LIMIT + 1)
    assert server.refusal(path, too_long)[0] == 413
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
    assert server.talk(head).startswith(b"HTTP/1.1 413 ")
    chunks = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks += (b"1000\r\n" + b" " * 4096 + b"\r\n") * 20 + b"0\r\n\r\n"
    assert b"HTTP/1.1 413 " in server.talk(chunks)[:20]
    bomb = gzip.compress(b" " * (50 * LIMIT))
    assert len(bomb) < LIMIT
    assert server.refusal(path, bomb, {"Content-Encoding": "gzip"})[0] in (400, 413)


def test_bytes_that_are_no_request_leave_the_server_standing(server: RunningServer):
    random = np.random.default_rng(0)
    for size in (1, 100, 70_000):
        server.talk(random.bytes(size))
    server.talk(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n")
    for body in (b"", b"[", b"\x80\x04\x95", b"[" * 60_000, b'{"inputs":' * 5000, json.dumps({"inputs": {}}).encode()):
        for path in ("/predict", "/v2/models/double/infer"):
            assert server.refusal(path, body)[0] == 400
    assert server.infer(ROW)[0] == 200


def test_names_that_other_programs_would_stumble_over_stay_in_their_place():
    with serving(name='a"b\n\x1b[2J\\') as server:
        text = server.ask("GET", "/metrics")[1].decode()
        assert '{model="a\\"b\\n?[2J\\\\",version="1"}' in text
        assert "\x1b" not in text


# --- when the model or the queue says no -------------------------------------------------------------


def test_a_model_that_fails_answers_500_without_its_traceback():
    def broken(inputs):
        if inputs["x"][0, 0] > 0:
            raise ValueError("the third layer does not like this\nsecond line of it")
        return {"y": inputs["x"]}

    with serving(broken) as server:
        status, sentence = server.refusal("/predict", '{"inputs": {"x": [[1, 2, 3]]}}')
        assert (status, sentence) == (500, "The model failed: ValueError: the third layer does not like this")
        assert server.infer({**ROW, "data": [-1, 0, 0]})[0] == 200
        assert 'reason="BACKEND"} 1\n' in server.ask("GET", "/metrics")[1].decode()


def test_a_model_that_ended_its_thread_is_not_called_ready():
    def ends(inputs):
        raise SystemExit(3)

    with serving(ends) as server:
        assert server.ask("GET", "/v2/health/ready")[0] == 200
        assert server.refusal("/predict", '{"inputs": {"x": [[1, 2, 3]]}}')[0] == 500
        status, sentence = server.refusal("/predict", '{"inputs": {"x": [[1, 2, 3]]}}')
        assert (status, "the model ended its thread with SystemExit" in sentence) == (503, True)
        assert server.ask("GET", "/v2/health/ready")[0] == 503
        assert server.ask("GET", "/v2/health/live")[0] == 200


def test_a_body_that_never_comes_is_given_up(monkeypatch):
    monkeypatch.setattr("engine.serving.http.BODY_SECONDS", 0.2)
    with serving() as server:
        answer = server.talk(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert server.door.held.bytes == 0


def test_a_full_queue_is_503_and_a_passed_deadline_504():
    release = threading.Event()

    def stuck(inputs):
        release.wait(20)
        return {"y": inputs["x"]}

    with serving(stuck, max_queue_size=1, max_batch_size=1) as server:
        results: list[int] = []
        threads = [threading.Thread(target=lambda: results.append(server.infer(ROW)[0])) for _ in range(2)]
        threads[0].start()
        wait_until(lambda: server.model.batcher.statistics.totals().in_system == 1 and not server.model.batcher.depth)
        status, answer = server.infer(ROW, parameters={"timeout": 20_000})
        assert (status, "longer than its limit" in answer["error"]) == (504, True)
        threads[1].start()
        wait_until(lambda: server.model.batcher.depth == 1)
        status, answer = server.infer(ROW)
        assert (status, "Try again later" in answer["error"]) == (503, True)
        release.set()
        for thread in threads:
            thread.join()
        assert results == [200, 200]


def test_a_caller_that_goes_away_is_taken_out_of_the_queue():
    release = threading.Event()
    rows: list[int] = []

    def stuck(inputs):
        rows.append(len(inputs["x"]))
        release.wait(20)
        return {"y": inputs["x"]}

    with serving(stuck, max_batch_size=1) as server:
        first = threading.Thread(target=server.infer, args=(ROW,))
        first.start()
        wait_until(lambda: rows)
        body = json.dumps({"inputs": [ROW]}).encode()
        head = f"POST /v2/models/double/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as caller:
            caller.sendall(head.encode() + body)
            wait_until(lambda: server.model.batcher.depth == 1)
        wait_until(lambda: server.model.batcher.depth == 0)
        release.set()
        first.join()
        assert rows == [1]
        assert 'reason="CANCELED"} 1\n' in server.ask("GET", "/metrics")[1].decode()


def test_all_bodies_together_are_bounded():
    with serving(limit=8192) as server:
        held = []
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 8192\r\n\r\n"
        for _ in range(9):
            caller = socket.create_connection(("127.0.0.1", server.port), timeout=20)
            caller.sendall(head + b" " * 8000)  # and never the rest
            held.append(caller)
        last = held[-1].recv(1000)
        for caller in held:
            caller.close()
        assert last.startswith(b"HTTP/1.1 503 ")
        wait_until(lambda: server.infer(ROW)[0] == 200)
