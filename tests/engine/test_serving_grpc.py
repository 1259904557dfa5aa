"""The gRPC door, as tritonclient and hand-made messages find it."""

import threading

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from engines import wait_until
from served_models import RunningServer, serving
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from engine.serving.grpc_messages import CLASSES, SERVICE


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


def client_of(server: RunningServer) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")


def triton_input(array: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    return tensor


def call(server: RunningServer, request) -> object:
    """A message of our own making, sent as it is."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=CLASSES["ModelInferResponse"].FromString,
        )
        return infer(request, timeout=20)


def message(**changes):
    given = {"model_name": "double", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3]}]} | changes
    return CLASSES["ModelInferRequest"](**given)


def test_our_messages_are_those_of_the_protocol():
    """Field by field against the classes that Triton's own client was generated with."""
    for name, ours in CLASSES.items():
        theirs = service_pb2 if hasattr(service_pb2, name.partition(".")[0]) else model_config_pb2
        for part in name.split("."):
            theirs = getattr(theirs, part)
        known = {field.number: field for field in theirs.DESCRIPTOR.fields}
        for field in ours.DESCRIPTOR.fields:
            assert (field.name, field.type) == (known[field.number].name, known[field.number].type), name
            assert field.is_repeated == known[field.number].is_repeated, name
            if field.enum_type is not None:
                assert field.enum_type.values_by_name.keys() == known[field.number].enum_type.values_by_name.keys()
                for value in field.enum_type.values:
                    assert known[field.number].enum_type.values_by_name[value.name].number == value.number


def test_health_and_metadata(server: RunningServer):
    client = client_of(server)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("double")
    assert client.get_server_metadata().name == "trimtab"
    described = client.get_model_metadata("double")
    assert (described.inputs[0].name, described.inputs[0].datatype, list(described.inputs[0].shape)) == (
        "x",
        "FP32",
        [-1, 3],
    )
    assert [one.name for one in client.get_model_repository_index().models] == ["double"]


def test_tritonclient_gets_the_models_numbers(server: RunningServer):
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    result = client_of(server).infer("double", [triton_input(x)], request_id="seven")
    assert np.array_equal(result.as_numpy("y"), x * 2)
    assert result.get_response().id == "seven"
    assert client_of(server).get_inference_statistics("double").model_stats[0].inference_count >= 5


def test_values_may_come_one_by_one(server: RunningServer):
    request = message()
    request.inputs[0].contents.fp32_contents.extend([1, 2, 3])
    answer = call(server, request)
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [2, 4, 6]


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": []},
        {"raw_input_contents": [b"\0" * 11]},
        {"raw_input_contents": [b"\0" * 12, b""]},
        {"raw_input_contents": []},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2**62, 3]}], "raw_input_contents": [b"\0" * 12]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}], "raw_input_contents": [b"\0" * 12]},
        {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1, 3]}], "raw_input_contents": [b"\0" * 12]},
        {"inputs": [{"name": "x" * 5000, "datatype": "FP32", "shape": [1, 3]}], "raw_input_contents": [b"\0" * 12]},
        {"outputs": [{"name": "z"}], "raw_input_contents": [b"\0" * 12]},
        {"parameters": {"timeout": {"string_param": "soon"}}, "raw_input_contents": [b"\0" * 12]},
    ],
)
def test_what_does_not_fit_is_an_invalid_argument_with_the_reason(server: RunningServer, changes):
    with pytest.raises(grpc.RpcError) as caught:
        call(server, message(**changes))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert 0 < len(caught.value.details()) < 500


def test_a_model_that_is_not_here_is_not_found_wherever_it_is_asked_for(server: RunningServer):
    client, one = client_of(server), triton_input(np.ones((1, 3), np.float32))
    for name, version in (("other", ""), ("double", "3")):
        for ask in (
            client.get_model_metadata,
            client.is_model_ready,
            client.get_inference_statistics,
            client.get_model_config,
            lambda name, version: client.infer(name, [one], version),
        ):
            with pytest.raises(InferenceServerException) as caught:
                ask(name, version)
            assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_a_message_over_the_limit_is_refused(server: RunningServer):
    with pytest.raises(grpc.RpcError) as caught:
        call(server, message(raw_input_contents=[b"\0" * 1_000_000]))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_model_that_fails_is_an_internal_error_without_its_traceback():
    def broken(inputs):
        raise ValueError("no\nTraceback")

    with serving(broken) as server, pytest.raises(InferenceServerException) as caught:
        client_of(server).infer("double", [triton_input(np.ones((1, 3), np.float32))])
    assert caught.value.status() == "StatusCode.INTERNAL"
    assert caught.value.message() == "The model failed: ValueError: no"


def test_a_caller_that_gives_up_is_taken_out_of_the_queue():
    release, rows = threading.Event(), []

    def stuck(inputs):
        rows.append(len(inputs["x"]))
        release.wait(20)
        return {"y": inputs["x"]}

    with serving(stuck, max_batch_size=1) as server:
        client, one = client_of(server), triton_input(np.ones((1, 3), np.float32))
        answered = threading.Event()
        client.async_infer("double", [one], lambda result, error: answered.set())
        wait_until(lambda: rows)
        given_up = client.async_infer("double", [one], lambda result, error: None)
        wait_until(lambda: server.model.batcher.depth == 1)
        given_up.cancel()
        wait_until(lambda: server.model.batcher.depth == 0)
        release.set()
        assert answered.wait(20)
        assert rows == [1]


def test_all_messages_together_are_bounded_and_those_waiting_to_be_read_are_not_lost():
    release, size = threading.Event(), 400

    def stuck(inputs):
        release.wait(20)
        return {"y": inputs["x"]}

    with serving(stuck, limit=size, max_batch_size=1) as server, client_of(server) as client:
        one, answers = triton_input(np.ones((1, 3), np.float32)), []
        sent = 100
        for _ in range(sent):
            client.async_infer("double", [one], lambda result, error: answers.append(error))
        wait_until(lambda: answers)  # those there is no room for
        assert server.door.held.bytes <= 8 * size
        wait_until(lambda: len(answers) + server.model.batcher.statistics.totals().in_system == sent)
        refused = [error for error in answers if error is not None]
        assert {error.status() for error in refused} == {"StatusCode.RESOURCE_EXHAUSTED"}
        assert "Try again later" in refused[0].message()
        release.set()
        wait_until(lambda: len(answers) == sent)
        assert answers.count(None) == sent - len(refused) > 8
        wait_until(lambda: server.door.held.bytes == 0)


def test_many_callers_at_once_are_all_read():
    with serving(max_batch_size=8, max_queue_size=4096, limit=1 << 20) as server, client_of(server) as client:
        one, answers = triton_input(np.ones((1, 3), np.float32)), []
        for _ in range(300):
            client.async_infer("double", [one], lambda result, error: answers.append(error))
        wait_until(lambda: len(answers) == 300)
        assert set(answers) == {None}


def test_bytes_that_are_no_message_are_an_invalid_argument(server: RunningServer):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for data in (b"\xff" * 10, b"\x0a\x05ab"):
            with pytest.raises(grpc.RpcError) as caught:
                infer(data, timeout=20)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
