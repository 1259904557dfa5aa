"""Load sent over the network: every request comes back once, times are the server's, and what cannot work is refused.

The servers are the real doors, and, where a server has to misbehave, a few lines on a socket.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from served_models import RunningServer, serving

from engine.batching.queue import CLOSED, COMPLETED, EXPIRED, FAILED, REJECTED
from engine.measurements.load_test.generator import LoadGenerator
from engine.measurements.load_test.request import Load
from engine.measurements.load_test.server_target import ServerTarget, open_target, server_conditions
from engine.measurements.load_test.summary import summarise
from engine.protocol import LoadSettings
from engine.runtimes import RuntimeUnavailable
from engine.serving.grpc_messages import CLASSES

POOL = [{"x": np.full((1, 3), value, np.float32)} for value in range(4)]


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


def addresses(server: RunningServer) -> dict[str, str]:
    return {"HTTP": server.url, "gRPC": server.grpc_url, "plain": f"{server.url}/predict"}


def run(target: ServerTarget, load: Load, pool=POOL):
    generator = LoadGenerator(target, pool, load)
    record = generator.run()
    return generator, record


def refusal(url: str, pool=POOL, **settings) -> str:
    with pytest.raises(RuntimeUnavailable) as caught:
        open_target(LoadSettings(url=url, **settings), pool)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- a load ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["HTTP", "gRPC", "plain"])
def test_every_request_of_a_load_is_answered_once(server: RunningServer, way):
    settings = LoadSettings(url=addresses(server)[way], concurrency=4)
    before = server.model.succeeded
    target = open_target(settings, POOL)
    generator, record = run(target, Load(arrivals="closed", concurrency=4, seconds=30, requests=200))
    assert generator.outstanding == 0
    assert record.count == 200
    assert (record.status[:200] == COMPLETED).all()
    assert server.model.succeeded == before + 201  # one was sent to see whether they fit
    assert (record.finished[:200] > record.sent[:200]).all()


@pytest.mark.parametrize("way", ["HTTP", "gRPC"])
def test_the_servers_own_times_and_batches_stand_in_the_summary(way):
    def slow(inputs):
        time.sleep(0.01)
        return {"y": inputs["x"]}

    with serving(slow, max_wait_ms=0.0, max_batch_size=4) as server:
        target = open_target(LoadSettings(url=addresses(server)[way], concurrency=8), POOL)
        load = Load(arrivals="closed", concurrency=8, seconds=30, requests=160)
        generator, record = run(target, load)
        summary = target.with_server_figures(summarise(record, load, generator.sending_ended))
    assert summary.completed == 160
    assert summary.compute_ms["mean"] > 9
    assert summary.queue_ms["mean"] > 1
    assert sum(int(rows) * runs for rows, runs in summary.batch_sizes.items()) == 160
    assert max(map(int, summary.batch_sizes)) == 4


def test_a_server_without_statistics_leaves_them_open(server: RunningServer):
    target = open_target(LoadSettings(url=f"{server.url}/predict", concurrency=1), POOL)
    load = Load(arrivals="closed", concurrency=1, seconds=30, requests=5)
    generator, record = run(target, load)
    summary = target.with_server_figures(summarise(record, load, generator.sending_ended))
    assert (summary.completed, summary.queue_ms, summary.batch_sizes) == (5, {}, {})


def test_an_open_loop_is_not_slowed_by_a_slow_server():
    def slow(inputs):
        time.sleep(0.2)
        return {"y": inputs["x"]}

    with serving(slow, max_batch_size=1, max_wait_ms=0.0) as server:
        target = open_target(LoadSettings(url=server.url, rate=40), POOL)
        generator, record = run(target, Load(arrivals="constant", rate=40, seconds=0.5, drain_seconds=60))
        count = record.count
        assert count >= 19
        assert generator.outstanding == 0
        # Five a second are answered, forty came: the last one waited for all before it.
        assert record.finished[:count].max() - record.scheduled[:count].max() > 0.2 * (count - 5)
        assert (record.sent[:count] - record.scheduled[:count]).max() < 0.2


def test_several_samples_make_one_request(server: RunningServer):
    settings = LoadSettings(url=server.url, concurrency=2, rows_per_request=4)
    target = open_target(settings, POOL)
    load = Load(arrivals="closed", concurrency=2, seconds=30, requests=20, samples_per_request=4)
    before = server.model.counts().rows
    _, record = run(target, load)
    assert (record.rows[:20] == 4).all()
    assert server.model.counts().rows == before + 4 * 20


@pytest.mark.parametrize("way", ["HTTP", "gRPC", "plain"])
def test_what_is_sent_is_laid_out_before_the_load_and_nothing_else(server: RunningServer, way, monkeypatch):
    settings = LoadSettings(url=addresses(server)[way], concurrency=2, rows_per_request=4)
    target = open_target(settings, POOL)
    load = Load(arrivals="closed", concurrency=2, seconds=30, requests=20, samples_per_request=4)
    generator = LoadGenerator(target, POOL, load)
    assert target._payloads == {}
    target.prepare(generator.inputs)
    assert [len(inputs["x"]) for inputs, _ in target._payloads.values()] == [4] * len(POOL)
    monkeypatch.setattr(target.channel, "encode", None)  # called no more
    record = generator.run()
    assert (record.status[:20] == COMPLETED).all()


def test_what_the_server_turns_away_is_counted_as_what_it_is():
    def fails(inputs):
        if inputs["x"][0, 0] == 3:
            raise ValueError("not this one")
        return {"y": inputs["x"]}

    with serving(fails, max_batch_size=1) as server:
        target = open_target(LoadSettings(url=server.url, concurrency=1), POOL)
        generator, record = run(target, Load(arrivals="closed", concurrency=1, seconds=30, requests=60))
        assert set(record.status[:60].tolist()) == {COMPLETED, FAILED}
        assert generator.errors == ["RuntimeError: The model failed: ValueError: not this one"]


@pytest.mark.parametrize("way", ["HTTP", "gRPC"])
def test_a_full_queue_and_a_passed_deadline_are_told_apart(way):
    release, runs = threading.Event(), []

    def stuck(inputs):
        runs.append(1)
        if len(runs) > 1:
            release.wait(30)
        return {"y": inputs["x"]}

    with serving(stuck, max_batch_size=1, max_queue_size=1) as server:
        settings = LoadSettings(url=addresses(server)[way], concurrency=3, timeout_ms=300)
        target = open_target(settings, POOL)
        load = Load(arrivals="closed", concurrency=1, seconds=30, requests=3, drain_seconds=20)
        generator = LoadGenerator(target, POOL, load)
        thread = threading.Thread(target=generator.run)
        thread.start()
        deadline = time.monotonic() + 20
        while len(runs) < 2:  # the first was the target's own look at the server
            assert time.monotonic() < deadline
            time.sleep(0.01)
        generator.set_concurrency(3)  # one runs: of two more one may wait
        while generator.outstanding > 1 or generator.record.count < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        release.set()
        thread.join(30)
        assert sorted(generator.record.status[:3].tolist()) == sorted([COMPLETED, EXPIRED, REJECTED])


def test_what_found_no_connection_here_is_no_rejection_by_the_server():
    release, runs = threading.Event(), []

    def stuck(inputs):
        runs.append(1)
        if len(runs) > 1:
            release.wait(30)
        return {"y": inputs["x"]}

    with serving(stuck, max_batch_size=1) as server:
        target = open_target(LoadSettings(url=server.url, rate=200, max_queue_size=3), POOL)
        target._most = 2
        load = Load(arrivals="constant", rate=200, seconds=0.5, drain_seconds=20)
        generator = LoadGenerator(target, POOL, load)
        thread = threading.Thread(target=generator.run)
        thread.start()
        deadline = time.monotonic() + 20
        while not generator.sending_ended:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        release.set()
        thread.join(30)
        summary = summarise(generator.record, load, generator.sending_ended)
    assert summary.completed > 0
    assert summary.rejected == 0
    assert summary.dropped > 50
    assert not summary.valid
    assert any("dropped here and never sent" in reason for reason in summary.reasons)


def test_what_is_under_way_at_the_end_is_handed_back_too():
    release, runs = threading.Event(), []

    def stuck(inputs):
        runs.append(1)
        if len(runs) > 1:
            release.wait(30)
        return {"y": inputs["x"]}

    with serving(stuck, max_batch_size=1) as server:
        target = open_target(LoadSettings(url=server.url, rate=100), POOL)
        generator, record = run(target, Load(arrivals="constant", rate=100, seconds=0.2, drain_seconds=0.1))
        release.set()
    assert record.count > 10
    assert (record.status[: record.count] == CLOSED).all()
    assert generator.outstanding == 0


# --- a server that cannot be tested ------------------------------------------------------------------


def test_a_server_that_is_not_there_is_said_to_be(server: RunningServer):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        port = taken.getsockname()[1]
        assert refusal(f"http://127.0.0.1:{port}") == (
            f"The server at 127.0.0.1:{port} cannot be reached: Connect call failed ('127.0.0.1', {port})."
        )
        assert f"127.0.0.1:{port} cannot be reached" in refusal(f"grpc://127.0.0.1:{port}")
    assert "no valid port" in refusal("http://127.0.0.1:99999999")


@contextlib.contextmanager
def grpc_server(*handlers: grpc.GenericRpcHandler) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2), handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    server.stop(None).wait(10)


class Locked(grpc.GenericRpcHandler):
    """It says that it is ready, and whoever asks more has to sign in."""

    def service(self, call):
        def answer(request, context):
            if not call.method.endswith("/ServerReady"):
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "Sign in first.\nOr else.")
            return CLASSES["ServerReadyResponse"](ready=True).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)


def test_another_grpc_service_is_a_sentence():
    with grpc_server() as url:
        assert refusal(url).endswith(" does not answer as a KServe v2 server does: Method not found.")
    with grpc_server(Locked()) as url:
        assert refusal(url).endswith(" does not answer as a KServe v2 server does: Sign in first.")


@pytest.mark.parametrize("way", ["HTTP", "gRPC"])
def test_a_model_it_does_not_have_is_refused(server: RunningServer, way):
    assert "no model resnet" in refusal(addresses(server)[way], model_name="resnet")


@pytest.mark.parametrize("way", ["HTTP", "gRPC"])
@pytest.mark.parametrize(
    "pool",
    [
        [{"z": np.zeros((1, 3), np.float32)}],
        [{"x": np.zeros((1, 4), np.float32)}],
        [{"x": np.zeros((1, 3), np.float64)}],
        [{"x": np.zeros((1, 3), np.float32), "z": np.zeros(1, np.int64)}],
    ],
)
def test_inputs_that_do_not_match_are_refused_before_the_load(server: RunningServer, way, pool):
    sentence = refusal(addresses(server)[way], pool)
    assert "is another model: it takes x FP32 [-1, 3]; this model's requests are" in sentence


@pytest.mark.parametrize("way", ["HTTP", "gRPC", "plain"])
def test_the_servers_own_reason_is_told(server: RunningServer, way):
    assert "largest batch" in refusal(addresses(server)[way], rows_per_request=9)


def test_a_server_that_is_shutting_down_is_not_ready():
    with serving() as server:
        server.model.closing = True
        for way in ("HTTP", "gRPC"):
            assert "is not ready" in refusal(addresses(server)[way])


def test_where_the_load_went_is_recorded(server: RunningServer):
    target = open_target(LoadSettings(url=server.url, concurrency=1), POOL)
    found = server_conditions(target)
    target.close()
    assert (found.runtime, found.device) == ("trimtab over HTTP", f"127.0.0.1:{server.port}")
    assert "trimtab" in found.versions


# --- a server that misbehaves ------------------------------------------------------------------------


@contextlib.contextmanager
def socket_server(serve: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """`serve(connection, number of the connection)` in a thread each."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            number = 0
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=handle, args=(connection, number), daemon=True).start()
                    number += 1

        def handle(connection: socket.socket, number: int) -> None:
            with connection, contextlib.suppress(OSError):
                serve(connection, number)

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/score"
        listener.shutdown(socket.SHUT_RDWR)


def read_request(connection: socket.socket) -> bool:
    """Take in one request; False when there is none."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        if not piece:
            return False
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return True


def load_on(url: str, requests: int = 30):
    target = open_target(LoadSettings(url=url, concurrency=2), POOL)
    return run(target, Load(arrivals="closed", concurrency=2, seconds=20, requests=requests))


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"],
        [b"HTTP/1.1 200 OK\r\ncontent-", b"length: 2\r\n\r", b"\n{", b"}"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1", b"0\r\n0123456789abcdef\r\n0\r\n\r\n"],
        [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"],
        [b"HTTP/1.1 200\r\nContent-Length: 300000\r\n\r\n", b"x" * 300_000],
    ],
    ids=["plain", "in pieces", "chunked", "interim", "long"],
)
def test_answers_of_any_shape_are_understood_on_a_kept_connection(pieces):
    connections = []

    def serve(connection: socket.socket, number: int) -> None:
        connections.append(number)
        while read_request(connection):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.001 if len(pieces) > 1 else 0)

    with socket_server(serve) as url:
        _, record = load_on(url)
    assert (record.status[:30] == COMPLETED).all()
    assert len(connections) <= 10


def test_a_connection_that_ends_with_each_answer_is_opened_anew():
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n{}")

    with socket_server(serve) as url:
        _, record = load_on(url)
    assert (record.status[:30] == COMPLETED).all()


def test_a_kept_connection_that_the_server_ended_costs_no_request():
    def serve(connection: socket.socket, number: int) -> None:
        for _ in range(3):
            read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with socket_server(serve) as url:
        _, record = load_on(url, requests=60)
    assert (record.status[:60] == COMPLETED).all()


@pytest.mark.parametrize(
    "answer", [b"", b"\0\1\2\3\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"a" * 100_000]
)
def test_an_answer_that_is_none_fails_its_request_and_no_other(answer):
    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            if number == 0:  # the one that asks whether the requests fit
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            else:
                connection.sendall(answer)
                return

    with socket_server(serve) as url:
        generator, record = load_on(url, requests=8)
    assert record.count == 8
    assert (record.status[:8] == FAILED).all()
    assert generator.outstanding == 0


def test_an_answer_with_a_hostile_error_is_one_clean_sentence():
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        body = b"\x1b[2J" + b"A" * 1_000_000
        connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    with socket_server(serve) as url:
        sentence = refusal(url)
    assert "\x1b" not in sentence
    assert len(sentence) < 400
