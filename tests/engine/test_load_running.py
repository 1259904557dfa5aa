"""A load test of a real variant: copies of the model, the user's data as requests, ticks, knobs, and what is kept."""

import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import torch
from gated_models import wait_for
from onnx import TensorProto, helper
from opened_models import CLASSIFIER, baseline_of, job_on, linear_graph, opened, save_graph, write
from served_models import serving

from engine.batching.queue import COMPLETED, FAILED
from engine.context import JobContext, LoadedVariant
from engine.measurements.load_test.live import LiveTest, is_loopback
from engine.measurements.load_test.pool import request_pool
from engine.measurements.load_test.record import Record
from engine.measurements.load_test.request import Load
from engine.measurements.load_test.running import LoadStage, load_of, policy_of, read_trace, run_task
from engine.measurements.load_test.target import BatcherTarget
from engine.models import ModelError
from engine.protocol import (
    GpuSample,
    LoadKnobs,
    LoadSearch,
    LoadSettings,
    LoadTest,
    LoadTick,
    Steer,
    TelemetrySample,
    TestLoad,
    Ticked,
    Took,
    Use,
)
from engine.runtimes import RuntimeUnavailable, load
from engine.runtimes.copies import ModelCopies
from engine.serving.tensors import ServedTensor


class Bench:
    """A job on one variant that records what it sends and can be steered."""

    def __init__(self, directory: Path, path: Path, runtime: str = "onnxruntime", **said: Any) -> None:
        self.variant: LoadedVariant = baseline_of(opened(path, **said), directory)
        self.runtime = runtime
        self.sent: list = []
        self.ticked = threading.Event()
        self.job: JobContext = job_on(self.variant, directory, self._take)
        self.job.hear = self._listen
        self.steer = lambda message: None

    def _take(self, message: object) -> None:
        self.sent.append(message)
        if isinstance(message, Ticked):
            self.ticked.set()

    def _listen(self, take) -> None:
        self.steer = take

    def run(self, known: tuple[LoadTest, ...] = (), search: str = "", **settings):
        """The outcome of the task: its last measurement."""
        task = TestLoad(
            variant=self.variant.record.id,
            runtime=self.runtime,
            settings=LoadSettings(**settings),
            search=search,
            known=known,
        )
        found, self.sentence = run_task(self.job, task)
        return found[0]

    def when_ticking(self, *messages: Steer) -> threading.Thread:
        """Steer once ticks come, from another thread, as the engine does."""

        def act() -> None:
            assert self.ticked.wait(30)
            for message in messages:
                self.steer(message)

        thread = threading.Thread(target=act)
        thread.start()
        return thread

    @property
    def ticks(self) -> list[LoadTick]:
        return [message.tick for message in self.sent if isinstance(message, Ticked)]

    @property
    def kept(self) -> list[LoadTest]:
        return [message.measurement for message in self.sent if isinstance(message, Took)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, linear_graph(tmp_path / "net.onnx"))


def test_callers_are_all_answered_and_batches_form(bench: Bench) -> None:
    test = bench.run(concurrency=16, seconds=0.8, warm_up_seconds=0.2, max_batch_size=8)
    summary = test.summary
    assert summary.completed > 100
    assert summary.failed == summary.rejected == summary.unanswered == 0
    assert max(map(int, summary.batch_sizes)) <= 8
    assert max(map(int, summary.batch_sizes)) > 1
    assert summary.scenario == "closed loop"
    assert summary.latency_ms["p50"].value <= summary.latency_ms["p99"].value
    assert test.conditions.runtime == "onnxruntime"
    assert test.conditions.device == "cpu"
    assert test.use.cpu is not None
    assert test.use.gpu is None
    assert "requests/s" in bench.sentence


def test_ticks_tell_what_happened_and_add_up(bench: Bench) -> None:
    test = bench.run(concurrency=4, seconds=1.4, warm_up_seconds=0.0)
    ticks = bench.ticks
    assert len(ticks) >= 3
    assert sum(tick.completed for tick in ticks) <= test.summary.completed
    assert [tick.seconds for tick in ticks] == sorted(tick.seconds for tick in ticks)
    assert ticks[0].knobs == LoadKnobs(concurrency=4, max_batch_size=32, max_wait_ms=10.0, instances=1, paused=False)
    assert all(tick.cpu is not None and 0 <= tick.cpu <= 1 for tick in ticks)
    assert {tick.phase for tick in ticks} <= {"measuring", "draining"}
    assert all(sum(tick.batch_sizes.values()) for tick in ticks if tick.completed)
    assert all(tick.memory_bytes for tick in ticks)
    assert test.use.memory_bytes == max(tick.memory_bytes for tick in ticks)


def test_what_this_machine_does_is_not_told_of_a_server_elsewhere(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(inputs=[ServedTensor("x", np.dtype(np.float32), (6,))]) as server:
        near = bench.run(url=server.url, rate=50.0, seconds=1.0, warm_up_seconds=0.0)
        assert near.use.cpu is not None
        assert not any("another machine" in note for note in near.notes)
        monkeypatch.setattr("engine.measurements.load_test.live.is_loopback", lambda url: False)
        bench.sent.clear()
        far = bench.run(url=server.url, rate=50.0, seconds=1.0, warm_up_seconds=0.0)
    assert far.summary.completed > 20
    assert far.use == Use()
    assert bench.ticks
    assert all(tick.cpu is tick.memory_bytes is tick.gpu is None for tick in bench.ticks)
    assert "The server runs on another machine: what its processors did is not known here." in far.notes


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:8000", True),
        ("grpc://localhost:1", True),
        ("http://[::1]:8000/predict", True),
        ("http://10.0.0.7:8000", False),
        ("http://gpu-box:8000", False),
        ("http://127.0.0.1.example.com", False),
    ],
)
def test_which_server_is_on_this_machine(url: str, here: bool) -> None:
    assert is_loopback(url) is here


def test_knobs_turn_while_it_runs_and_leave_marks(bench: Bench) -> None:
    steering = bench.when_ticking(
        Steer(knobs=LoadKnobs(max_batch_size=2)),
        Steer(knobs=LoadKnobs(concurrency=3)),
        Steer(knobs=LoadKnobs(max_wait_ms=0.0, instances=2)),
    )
    test = bench.run(concurrency=16, seconds=2.5, warm_up_seconds=0.1, max_batch_size=8)
    steering.join()
    assert [mark.text for mark in test.marks] == ["max batch 2", "concurrency 3", "max wait ms 0, instances 2"]
    assert any("changed while it ran" in note for note in test.notes)
    last = bench.ticks[-1]
    assert last.knobs == LoadKnobs(concurrency=3, max_batch_size=2, max_wait_ms=0.0, instances=2, paused=False)
    assert max(map(int, last.batch_sizes), default=0) <= 2
    assert test.settings.max_batch_size == 8


def test_preferred_sizes_and_priorities_reach_the_batcher_and_what_being_first_is_worth_is_said(bench: Bench) -> None:
    policy = policy_of(LoadSettings(preferred_batch_sizes=(4, 64), priority_levels=3))
    assert (policy.preferred_batch_sizes, policy.priority_levels) == ((4,), 3)
    steering = bench.when_ticking(Steer(knobs=LoadKnobs(max_batch_size=2)))
    test = bench.run(
        concurrency=8, seconds=1.5, warm_up_seconds=0.0, max_batch_size=8, preferred_batch_sizes=(4,), priority_levels=2
    )
    steering.join()
    assert [mark.text for mark in test.marks] == ["max batch 2"]  # a preferred size that fits no more is no obstacle
    assert test.summary.failed == test.summary.rejected == 0
    assert int(max(test.summary.batch_sizes, key=lambda size: test.summary.batch_sizes[size])) in (2, 4)
    assert any(note.startswith("p99 by priority, 1 is served first: 1: ") and "2: " in note for note in test.notes)


def test_a_knob_that_does_not_fit_is_refused_in_the_log_and_changes_nothing(bench: Bench) -> None:
    logged: list[str] = []
    bench.job.log = logged.append  # type: ignore[method-assign]
    steering = bench.when_ticking(Steer(knobs=LoadKnobs(rate=50.0)))
    test = bench.run(concurrency=2, seconds=0.9, warm_up_seconds=0.0)
    steering.join()
    assert logged == ["Not changed: a closed loop has no rate: change its concurrency."]
    assert test.marks == ()
    assert bench.ticks[-1].knobs.rate is None


def test_a_batch_that_no_request_fits_any_more_is_refused(bench: Bench) -> None:
    logged: list[str] = []
    bench.job.log = logged.append  # type: ignore[method-assign]
    steering = bench.when_ticking(Steer(knobs=LoadKnobs(max_batch_size=2)))
    test = bench.run(concurrency=2, seconds=0.9, warm_up_seconds=0.0, rows_per_request=4, max_batch_size=8)
    steering.join()
    assert logged == ["Not changed: a request of 4 rows fits no batch of 2."]
    assert (test.marks, test.summary.rejected) == ((), 0)


def test_a_knob_that_fails_is_said_in_the_log_and_those_after_it_still_turn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    bench.job.log = logged.append  # type: ignore[method-assign]
    plain = ModelCopies.runs

    def scarce(copies: ModelCopies, count: int):
        if count > 1:
            raise RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB.")
        return plain(copies, count)

    monkeypatch.setattr(ModelCopies, "runs", scarce)
    steering = bench.when_ticking(
        Steer(knobs=LoadKnobs(concurrency=3, instances=8)),
        Steer(knobs=LoadKnobs(max_batch_size=2)),
    )

    def stop() -> None:
        wait_for(lambda: any(tick.knobs.max_batch_size == 2 for tick in bench.ticks))
        bench.steer(Steer(stop=True))

    stopping = threading.Thread(target=stop)
    stopping.start()
    began = time.monotonic()
    test = bench.run(concurrency=2, seconds=60, warm_up_seconds=0.0)
    steering.join()
    stopping.join()
    assert time.monotonic() - began < 30
    assert logged == ["Not changed: RuntimeError: CUDA out of memory. Tried to allocate 2 GiB."]
    assert [mark.text for mark in test.marks] == ["concurrency 3", "max batch 2"]
    assert any("changed while it ran" in note for note in test.notes)


def test_a_pause_stops_the_sending_and_stop_keeps_what_was_measured(bench: Bench) -> None:
    def act() -> None:
        assert bench.ticked.wait(30)
        bench.steer(Steer(knobs=LoadKnobs(paused=True)))
        seen = len(bench.ticks)
        while len(bench.ticks) < seen + 4:
            time.sleep(0.02)
        bench.steer(Steer(stop=True))

    thread = threading.Thread(target=act)
    thread.start()
    began = time.monotonic()
    test = bench.run(rate=200.0, seconds=60, warm_up_seconds=0.0)
    thread.join()
    assert time.monotonic() - began < 30
    assert [mark.text for mark in test.marks] == ["paused"]
    assert bench.ticks[-1].completed == 0
    assert bench.ticks[-1].knobs.paused is True
    assert test.summary.completed > 0
    assert test.summary.unanswered == 0


@pytest.mark.parametrize("where", ["loading", "opening"])
def test_a_stop_before_the_first_request_is_sent_is_not_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """While the model is warmed up, and while the target opens: between the last look and the first request."""
    plain: Any = ModelCopies.warm_up if where == "loading" else BatcherTarget.open

    def stopped_meanwhile(*arguments: Any) -> None:
        plain(*arguments)
        bench.steer(Steer(knobs=LoadKnobs(paused=True)))
        bench.steer(Steer(stop=True))

    if where == "loading":
        monkeypatch.setattr(ModelCopies, "warm_up", stopped_meanwhile)
    else:
        monkeypatch.setattr(BatcherTarget, "open", stopped_meanwhile)
    began = time.monotonic()
    test = bench.run(rate=200.0, seconds=60, warm_up_seconds=0.0)
    assert time.monotonic() - began < 30
    assert [mark.text for mark in test.marks] == ["paused"]
    assert (test.summary.completed, test.summary.valid) == (0, False)


def test_a_pause_that_is_asked_for_and_taken_back_while_the_model_loads_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ModelCopies.warm_up

    def steered_meanwhile(*arguments: Any) -> None:
        plain(*arguments)
        for paused in (True, False):
            bench.steer(Steer(knobs=LoadKnobs(paused=paused)))

    monkeypatch.setattr(ModelCopies, "warm_up", steered_meanwhile)
    test = bench.run(rate=200.0, seconds=0.5, warm_up_seconds=0.0)
    assert test.marks == ()
    assert test.summary.completed > 0


def test_pause_and_stop_wait_for_no_other_knob(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies take long to load: until they have, the test can be paused and stopped all the same."""
    loading, ended = threading.Event(), threading.Event()
    plain = ModelCopies.runs

    def slow(copies: ModelCopies, count: int):
        if count > 1:
            loading.set()
            ended.wait(60)
        return plain(copies, count)

    def act() -> None:
        assert bench.ticked.wait(30)
        bench.steer(Steer(knobs=LoadKnobs(instances=2)))
        assert loading.wait(30)
        bench.steer(Steer(knobs=LoadKnobs(paused=True)))
        wait_for(lambda: bench.ticks[-1].knobs.paused is True)
        bench.steer(Steer(stop=True))

    monkeypatch.setattr(ModelCopies, "runs", slow)
    thread = threading.Thread(target=act)
    thread.start()
    began = time.monotonic()
    test = bench.run(rate=200.0, seconds=90, warm_up_seconds=0.0)
    ended.set()
    thread.join()
    assert time.monotonic() - began < 30
    assert [mark.text for mark in test.marks] == ["paused"]
    assert test.summary.completed > 0


def test_energy_is_shared_out_among_the_requests_answered_while_it_was_measured() -> None:
    """Under overload many answers come after the last request was sent: the joules up to then are not theirs."""
    load = Load(arrivals="constant", rate=100, seconds=3.0, warm_up_seconds=1.0)
    record = Record.empty(400)
    record.count = 400
    record.finished[:] = np.arange(400) / 100  # a hundred a second, the last hundred during the drain
    record.status[:] = COMPLETED
    record.status[150:160] = FAILED
    generator: Any = SimpleNamespace(load=load, record=record, sending_ended=3.0)
    stage: Any = SimpleNamespace(job=SimpleNamespace(spec=SimpleNamespace(device="cuda:0")), stopped=False)
    live = LiveTest(stage, LoadSettings(rate=100.0), cast(Any, None), generator, "")
    for at in (1.0001, 2.0, 3.0001):
        gpu = GpuSample(index=0, power_w=400.0, energy_j=400.0 * at)
        live._samples.append((at, TelemetrySample(time=at, cpu=0.5, gpus=(gpu,))))
    assert live.use().energy_j == pytest.approx(800.0)
    assert live.use().energy_per_1000_requests_j == pytest.approx(800.0 / 191 * 1000, rel=0.001)
    assert not live.came_too_late()
    record.finished[:] = 3.5
    assert live.use().energy_per_1000_requests_j is None
    assert live.came_too_late()


def slow_down(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Every run of a model takes so much longer."""
    plain = ModelCopies.runs

    def slowed(copies: ModelCopies, count: int):
        def slow(run):
            def call(inputs):
                time.sleep(seconds)
                return run(inputs)

            return call

        return [slow(run) for run in plain(copies, count)]

    patch.setattr(ModelCopies, "runs", slowed)


def test_answers_that_come_only_after_the_sending_are_said_to_tell_no_throughput(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(monkeypatch, 0.8)
    test = bench.run(offline=True, seconds=0.3, warm_up_seconds=0.0, max_batch_size=1)
    assert test.summary.unanswered == 0
    assert test.summary.achieved_per_s == 0
    assert any(note.startswith("Answers came only after the 0.3 s of sending") for note in test.notes)


def test_requests_are_the_users_own_samples(bench: Bench) -> None:
    copies = ModelCopies(bench.job.model, bench.variant, "onnxruntime", "cpu", 1)
    pool, _ = request_pool(bench.job.model, copies, same_input=False)
    assert len(pool) > 1
    assert all(request["x"].shape == (1, 6) for request in pool)
    assert len({request["x"].tobytes() for request in pool}) == len(pool)
    same, notes = request_pool(bench.job.model, copies, same_input=True)
    assert len(same) == 1
    assert "same input" in notes[0]


def test_a_model_with_one_batch_size_only_gets_whole_batches(tmp_path: Path) -> None:
    bench = Bench(tmp_path, linear_graph(tmp_path / "net.onnx", batch=4))
    test = bench.run(concurrency=3, seconds=0.6, warm_up_seconds=0.0, max_batch_size=32)
    assert set(test.summary.batch_sizes) == {"4"}
    assert test.summary.failed == 0
    assert "batches of 4 only" in " ".join(test.notes)


def test_samples_along_another_axis_and_an_input_taken_whole(tmp_path: Path) -> None:
    path = save_graph(
        tmp_path / "net.onnx",
        [helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0]), helper.make_node("MatMul", ["xt", "table"], ["y"])],
        {"x": (TensorProto.FLOAT, [5, "batch"]), "table": (TensorProto.FLOAT, [5, 3])},
        {"y": (TensorProto.FLOAT, ["batch", 3])},
    )
    bench = Bench(tmp_path, path, shapes={"x": [5, "batch"]})
    model = bench.job.model
    copies = ModelCopies(model, bench.variant, "onnxruntime", "cpu", 1)
    (run,) = copies.runs(1)
    example = model.example(3)
    request = copies.rows_first(example)
    assert {name: array.shape for name, array in request.items()} == {"x": (3, 5)}
    whole = {"table": model.example(1)["table"]}
    wanted = load(bench.variant, "onnxruntime", threads=1).run(example | whole)["y"]
    assert np.allclose(run(request)["y"], wanted)
    test = bench.run(concurrency=8, seconds=0.6, warm_up_seconds=0.0)
    assert test.summary.failed == 0
    assert test.summary.completed


@pytest.mark.parametrize("runtime", ["pytorch", "pytorch-bfloat16"])
def test_copies_of_a_module_share_out_the_threads_also_under_autocast(tmp_path: Path, runtime: str) -> None:
    bench = Bench(tmp_path, write(tmp_path, CLASSIFIER), runtime=runtime)
    before = torch.get_num_threads()
    try:
        runs = ModelCopies(bench.job.model, bench.variant, runtime, "cpu", 4).runs(2)
        torch.set_num_threads(1)
        runs[1](bench.job.model.example(1))
        assert torch.get_num_threads() == 2, "each thread that calls a copy takes on the copy's share"
    finally:
        torch.set_num_threads(before)


def test_openvino_compiles_few_shapes(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    bench = Bench(tmp_path, linear_graph(tmp_path / "net.onnx"), runtime="openvino")
    copies = ModelCopies(bench.job.model, bench.variant, "openvino", "cpu", 1)
    (run,) = copies.runs(1)
    reference = load(bench.variant, "onnxruntime", threads=1)
    for rows in (1, 2, 3, 5, 7, 8):
        inputs = bench.job.model.example(rows, seed=rows)
        assert np.allclose(run(inputs)["scores"], reference.run(inputs)["scores"], atol=1e-5)
    compiled = copies.first()._compiled  # type: ignore[attr-defined]
    assert len(compiled) == 4
    test = bench.run(rate=20.0, seconds=0.6, warm_up_seconds=0.0)
    assert any("filled up to the next power of two" in note for note in test.notes)


class _Shapes:
    """A runner that notes the rows it is called with, in place of one that compiles for each."""

    runtime, device, providers, versions = "onnxruntime", "cpu", (), {}
    shapes_kept = 8

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.rows: list[int] = []
        self.closed = False

    def run(self, inputs):
        self.rows.append(len(inputs["x"]))
        return {"scores": inputs["x"][:, :1]}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[_Shapes]]:
    """Every runner that was loaded, as long as anybody holds it."""
    known: list[weakref.ref[_Shapes]] = []

    def load_one(variant, runtime, device, threads):
        runner = _Shapes(threads)
        known.append(weakref.ref(runner))
        return runner

    monkeypatch.setattr("engine.runtimes.copies.load", load_one)
    return known


def test_batches_that_are_filled_up_never_have_more_than_the_largest(bench: Bench, loaded) -> None:
    copies = ModelCopies(bench.job.model, bench.variant, "openvino", "cpu", 1)
    request = copies.rows_first(bench.job.model.example(1))
    copies.warm_up(1, request, 24, [request])
    (run,) = copies.runs(1)
    runner = copies.first()
    assert sorted(set(runner.rows)) == [1, 2, 4, 8, 16, 24]  # type: ignore[attr-defined]
    for rows in (20, 24, 3, 17):
        runner.rows.clear()  # type: ignore[attr-defined]
        inputs = bench.job.model.example(rows)
        assert np.array_equal(run(inputs)["scores"], inputs["x"][:, :1])
        assert runner.rows == [{20: 24, 24: 24, 3: 4, 17: 24}[rows]]  # type: ignore[attr-defined]


def test_every_shape_of_the_data_is_compiled_beforehand_as_far_as_that_is_sensible(bench: Bench, loaded) -> None:
    copies = ModelCopies(bench.job.model, bench.variant, "openvino", "cpu", 1)
    pool = [{"x": np.zeros((1, 4 + number % 5), np.float32)} for number in range(50)]
    copies.warm_up(1, pool[0], 8, pool)
    runner: Any = copies.first()
    assert len(runner.rows) == 3 * 5 * 4
    assert copies.cold_shapes == 0
    assert runner.shapes_kept == 20
    copies.warm_up(1, pool[0], 8, pool)
    assert len(runner.rows) == 3 * 5 * 4  # they are warm
    copies.warm_up(1, pool[0], 128, pool)
    assert copies.cold_shapes == 5 * 8 - 24


def test_copies_that_are_no_longer_used_are_freed(bench: Bench, loaded) -> None:
    copies = ModelCopies(bench.job.model, bench.variant, "onnxruntime", "cpu", 4)
    for count in range(1, 9):
        copies.runs(count)
        assert sum(one() is not None for one in loaded) == count
    on_gpu = ModelCopies(bench.job.model, bench.variant, "onnxruntime", "cuda:0", 4)
    before = len(loaded)
    for count in range(1, 9):
        on_gpu.runs(count)
    assert len(loaded) - before == 8  # those that are there are used again
    on_gpu.runs(2)
    assert sum(one() is not None for one in loaded[before:]) == 2


def test_copies_that_a_knob_replaces_are_freed_and_new_ones_are_warm_before_they_are_used(bench: Bench, loaded) -> None:
    first = threading.Event()

    def act() -> None:
        assert bench.ticked.wait(30)
        bench.steer(Steer(knobs=LoadKnobs(instances=2)))
        bench.steer(Steer(knobs=LoadKnobs(instances=3)))
        seen = len(bench.ticks)
        while len(bench.ticks) < seen + 2:
            time.sleep(0.02)
        alive.extend(runner for one in loaded if (runner := one()) is not None)
        first.set()
        bench.steer(Steer(stop=True))

    bench.job.spec = msgspec.structs.replace(bench.job.spec, threads=6)
    alive: list[_Shapes] = []
    thread = threading.Thread(target=act)
    thread.start()
    bench.run(concurrency=4, seconds=60, warm_up_seconds=0.0, max_batch_size=32)
    thread.join()
    assert [runner.threads for runner in alive] == [2, 2, 2]
    for runner in alive:
        assert runner.rows[:6] == [1, 1, 1, 32, 32, 32]


def test_copies_share_out_the_threads(bench: Bench) -> None:
    copies = ModelCopies(bench.job.model, bench.variant, "onnxruntime", "cpu", 4)
    assert len(copies.runs(2)) == 2
    assert copies.first().threads == 2
    assert copies.runs(2)[0] == copies.runs(2)[0]
    copies.close()


def test_a_model_that_fails_on_batches_is_said_before_the_load_starts(tmp_path: Path) -> None:
    code = """
        import torch

        class Net(torch.nn.Module):
            def forward(self, x):
                if len(x) > 20:
                    raise ValueError("too many rows for me")
                return x * 2

        def load_model():
            return Net()

        def example_input(batch_size):
            return torch.ones(batch_size, 4)
    """
    bench = Bench(tmp_path, write(tmp_path, code), runtime="pytorch")
    with pytest.raises(ModelError, match=r"fails on batches of up to 32 rows: .*too many rows for me"):
        bench.run(concurrency=2, seconds=0.5, warm_up_seconds=0.0)
    assert bench.run(concurrency=2, seconds=0.5, warm_up_seconds=0.0, max_batch_size=16).summary.completed


def test_a_trace_is_replayed_and_a_bad_one_is_a_sentence(bench: Bench, tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("\n".join(str(0.01 * n) for n in range(40)))
    test = bench.run(arrivals="replay", trace=str(trace), seconds=0.5, warm_up_seconds=0.0)
    assert test.summary.scenario == "replay"
    assert 30 <= test.summary.completed <= 50
    assert "The trace of 0.39 s was repeated 1.28 times to fill 0.5 s." in test.notes
    test = bench.run(arrivals="replay", trace=str(trace), seconds=0.3, warm_up_seconds=0.0)
    assert "Only the first 0.3 s of the trace's 0.39 s were replayed." in test.notes
    trace.write_text("soon\nlater\n")
    with pytest.raises(ModelError, match="one arrival time in seconds a line"):
        read_trace(str(trace))


def test_a_trace_of_which_a_part_would_be_left_out_or_that_has_no_gaps_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("5\n5\n5")
    with pytest.raises(ModelError, match=r"has one moment only: .* at least two arrival times that differ"):
        load_of(LoadSettings(arrivals="replay", trace=str(trace), rate=5.0, seconds=3.0))
    monkeypatch.setattr("engine.measurements.load_test.running.MOST_TRACE_LINES", 3)
    trace.write_text("1\n2\n3")
    assert len(read_trace(str(trace))) == 3
    trace.write_text("1\n2\n3\n4")
    with pytest.raises(ModelError, match="has more than 3 arrival times: split it"):
        read_trace(str(trace))


def test_a_trace_is_replayed_whole_and_once_unless_seconds_are_given(bench: Bench, tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("\n".join(str(5 + 0.01 * n * n) for n in range(13)))
    test = bench.run(arrivals="replay", trace=str(trace), warm_up_seconds=0.0)
    assert test.summary.completed == 13
    assert test.settings.seconds == pytest.approx(1.44, abs=0.001)
    assert "The whole trace was replayed once: 13 arrivals in 1.44 s." in test.notes
    load, notes = load_of(LoadSettings(arrivals="replay", trace=str(trace), rate=1.0))
    assert load.seconds == pytest.approx(12.0)  # at a rate of its own
    assert "13 arrivals in 12 s" in notes[0]
    with pytest.raises(ModelError, match=r"The trace lasts 1.44 s: .* warm-up of 2 s"):
        load_of(LoadSettings(arrivals="replay", trace=str(trace), warm_up_seconds=2.0))
    trace.write_text("0\n90000")
    with pytest.raises(ModelError, match=r"less than a day\. Give seconds"):
        load_of(LoadSettings(arrivals="replay", trace=str(trace)))


def test_the_highest_rate_is_found_confirmed_kept_and_not_searched_again(bench: Bench) -> None:
    # A limit far above what this model needs: every probe passes, however busy the machine is.
    asked = {
        "slo_p99_ms": 60_000.0,
        "seconds": 0.5,
        "warm_up_seconds": 0.1,
        "max_queue_size": 1_000_000,
        "same_input": True,
    }
    stage_limits = _Slow(bench)
    search = stage_limits.run(**asked)
    assert isinstance(search, LoadSearch)
    assert search.best_rate_per_s is not None
    assert search.best_rate_per_s <= search.capacity_per_s
    assert search.confirmed == (3, 3)
    assert bench.kept[0].purpose == "capacity"
    assert sum(test.purpose == "confirmation" for test in bench.kept) == 3
    assert len(search.points) == len(bench.kept)

    kept, bench.sent = tuple(bench.kept), []
    again = stage_limits.run(known=kept, **asked)
    assert again.best_rate_per_s == search.best_rate_per_s
    assert bench.kept == []


def test_a_search_on_a_model_with_one_batch_size_is_not_searched_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, linear_graph(tmp_path / "net.onnx", batch=4))
    asked: dict[str, Any] = {
        "slo_p99_ms": 60_000.0,
        "seconds": 0.5,
        "warm_up_seconds": 0.1,
        "max_queue_size": 1_000_000,
    }
    slow = _Slow(bench)
    search = slow.run(**asked)
    kept, bench.sent = tuple(bench.kept), []
    again = slow.run(known=kept, **asked)
    assert bench.kept == []
    assert again.best_rate_per_s == search.best_rate_per_s


class _Slow:
    """The same job with a model that takes a little while, so that no rate needs many requests."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def run(self, **asked):
        with pytest.MonkeyPatch.context() as patch:
            slow_down(patch, 0.0003)
            return self.bench.run(search="rate-1", max_batch_size=1, **asked)


def test_a_sweep_names_a_front_and_what_to_take(bench: Bench) -> None:
    search = bench.run(
        search="sweep-1",
        sweep=True,
        seconds=0.4,
        warm_up_seconds=0.1,
        sweep_batch_sizes=(1, 8),
        sweep_waits_ms=(0.0,),
        sweep_instances=(1,),
    )
    assert isinstance(search, LoadSearch)
    assert [point.settings.max_batch_size for point in search.points] == [1, 8]
    assert search.front
    assert search.knee in search.front
    assert search.recommended == search.knee
    assert "the knee of the front" in search.sentence
    assert len(bench.kept) == 2


def test_stopping_a_search_keeps_the_tests_that_ended(bench: Bench) -> None:
    def act() -> None:
        while not bench.kept:
            time.sleep(0.02)
        bench.steer(Steer(stop=True))

    thread = threading.Thread(target=act)
    thread.start()
    search = bench.run(
        search="sweep-2", sweep=True, seconds=1.0, warm_up_seconds=0.0, sweep_batch_sizes=(1, 2, 4, 8, 16, 32)
    )
    thread.join()
    assert "stopped early" in search.sentence
    assert 1 <= len(search.points) < 6
    assert len(search.points) == len(bench.kept)


def test_a_stage_that_cannot_load_the_variant_leaves_nothing_open(tmp_path: Path) -> None:
    bench = Bench(tmp_path, linear_graph(tmp_path / "net.onnx"))
    broken = msgspec.structs.replace(bench.variant.record, format="pytorch")
    stage = LoadStage(
        bench.job,
        LoadedVariant(broken, bench.variant.directory, bench.job.model),
        "onnxruntime",
        LoadSettings(offline=True),
    )

    with pytest.raises(RuntimeUnavailable, match="cannot run"):
        stage.test(LoadSettings(offline=True, seconds=0.3, warm_up_seconds=0.0), "")
    stage.close()
