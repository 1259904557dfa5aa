"""One side of `bench_batcher_peers`: our batcher and one peer's in one process, taking turns. Prints one JSON object.

Started in the peer's environment: `python peer_batchers.py ARM ROUNDS SECONDS MODE …`, ARM a key of `PEERS`. All are
called the same way: callers in one event loop, each with one row of 16 floats, each sending again when it was answered.
Per round: microseconds of wall time and of this process's CPU time a request, for both and for no batcher at all
("nothing"), and what the bare model takes a row, called with full batches in a plain loop ("model").
"""

import asyncio
import collections
import json
import logging
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import numpy.typing as npt

from engine.batching import BatchPolicy, DynamicBatcher

Rows = npt.NDArray[np.float32]
Call = Callable[[Rows], Awaitable[Rows]]
Arm = Callable[[str], AbstractAsyncContextManager[Call]]
"""Opens a batcher for one of `MODES`."""

ROW: Rows = np.zeros((1, 16), np.float32)

BATCH = 32

SLEEP = 0.002

MODES = {"full": 256, "sleeping": 64, "lone": 1}
"""Callers: many and a model that does nothing; twice the largest batch and a model that sleeps 2 ms a batch; one, and a
model that does nothing."""

WARM_UP = 0.2
"""Seconds before each measurement, in which BentoML's dispatcher makes its training calls."""


def null(rows: Rows) -> Rows:
    return rows


def sleeping(rows: Rows) -> Rows:
    time.sleep(SLEEP)
    return rows


def model_for(mode: str) -> Callable[[Rows], Rows]:
    return sleeping if mode == "sleeping" else null


def split(rows: Rows) -> list[Rows]:
    return [rows[number : number + 1] for number in range(len(rows))]


@asynccontextmanager
async def ours(mode: str) -> AsyncIterator[Call]:
    """`DynamicBatcher` with its defaults."""
    model = model_for(mode)
    policy = BatchPolicy(max_batch_size=BATCH)
    async with DynamicBatcher(lambda inputs: {"output": model(inputs["input"])}, policy) as batcher:

        async def call(row: Rows) -> Rows:
            return (await batcher.predict({"input": row}))["output"]

        yield call


@asynccontextmanager
async def nothing(mode: str) -> AsyncIterator[Call]:
    """No batcher: the loop itself answers all that wait. What the callers and their futures cost by themselves."""
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[Rows]] = []

    def answer() -> None:
        for future in waiting:
            future.set_result(ROW)
        waiting.clear()

    async def call(row: Rows) -> Rows:
        if not waiting:
            loop.call_soon(answer)
        future = loop.create_future()
        waiting.append(future)
        return await future

    yield call


# --- Ray Serve -------------------------------------------------------------------------------------


def ray_batched(mode: str, batch: Callable) -> Callable:
    """The decorated handler: on the event loop where the model does nothing, in a thread where it sleeps."""

    @batch(max_batch_size=BATCH, batch_wait_timeout_s=0.0 if mode == "lone" else 0.01)
    async def handle(rows: list[Rows]) -> list[Rows]:
        joined = np.concatenate(rows)
        return split(await asyncio.to_thread(sleeping, joined) if mode == "sleeping" else null(joined))

    return handle


@asynccontextmanager
async def ray_alone(mode: str) -> AsyncIterator[Call]:
    """`@serve.batch` in this process, told that it is in a replica; no cluster, so its metrics go nowhere."""
    from ray import serve
    from ray.serve import context
    from ray.serve._private.common import DeploymentID, ReplicaID
    from ray.serve._private.config import DeploymentConfig

    context._set_internal_replica_context(
        replica_id=ReplicaID("benchmark", DeploymentID("benchmark", "benchmark")),
        servable_object=None,
        _deployment_config=DeploymentConfig(max_ongoing_requests=100_000),
        rank=None,
        world_size=1,
    )
    yield ray_batched(mode, serve.batch)


@asynccontextmanager
async def ray_served(mode: str) -> AsyncIterator[Call]:
    """A deployment on a local cluster, called through its handle; no HTTP."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if not ray.is_initialized():
        ray.init(num_cpus=2, object_store_memory=80 * 2**20, **quiet)
        serve.start(http_options={"location": "NoServer"})

    class Model:
        def __init__(self) -> None:
            self.handle = ray_batched(mode, serve.batch)

        async def __call__(self, row: Rows) -> Rows:
            return await self.handle(row)

    handle = serve.run(serve.deployment(Model).options(max_ongoing_requests=1000).bind(), route_prefix=None)

    async def call(row: Rows) -> Rows:
        return await handle.remote(row)

    yield call
    if mode == sys.argv[-1]:
        await asyncio.to_thread(serve.shutdown)
        await asyncio.to_thread(ray.shutdown)


# --- BentoML ---------------------------------------------------------------------------------------


@asynccontextmanager
async def bentoml_alone(mode: str) -> AsyncIterator[Call]:
    """`CorkDispatcher` with the limits of `bentoml.api`; the model is a plain function, so it goes to a thread pool."""
    from bentoml._internal.marshal.dispatcher import CorkDispatcher

    model = model_for(mode)

    def handle(rows: tuple[Rows, ...]) -> list[Rows]:
        return split(model(np.concatenate(rows)))

    def overloaded() -> Rows:
        raise RuntimeError("turned away")

    dispatcher = CorkDispatcher(60_000, BATCH, fallback=overloaded, get_batch_size=len)
    yield dispatcher(handle)
    dispatcher.shutdown()


@asynccontextmanager
async def bentoml_served(mode: str) -> AsyncIterator[Call]:
    """A service with a batchable method, called as its HTTP handler calls it."""
    import bentoml
    from _bentoml_impl.server.app import ServiceAppFactory

    model = model_for(mode)

    @bentoml.service
    class Model:
        @bentoml.api(batchable=True, max_batch_size=BATCH)
        def run(self, rows: np.ndarray) -> np.ndarray:
            return model(rows)

    Model.inject_config()
    factory = ServiceAppFactory(Model)
    await factory.create_instance(None)

    async def call(row: Rows) -> Rows:
        return await factory.batch_infer("run", (), {"rows": row})

    yield call
    for dispatcher in factory.dispatchers.values():
        dispatcher.shutdown()


# --- LitServe --------------------------------------------------------------------------------------


def lit_api(mode: str, timeout: float):
    """The same model with LitServe's hooks; `timeout` is how long a batch waits for company."""
    import peer_litserve

    api = peer_litserve.MODELS[mode](max_batch_size=BATCH, batch_timeout=timeout)
    api.pre_setup(None)
    api.request_timeout = 30
    return api


@asynccontextmanager
async def litserve_alone(mode: str) -> AsyncIterator[Call]:
    """Its batching loop in a thread with a plain queue, in place of its process and its queues between processes."""
    from litserve.callbacks import CallbackRunner
    from litserve.loops.simple_loops import BatchedLoop

    loop = asyncio.get_running_loop()
    waiting: dict[int, asyncio.Future[Rows]] = {}
    answered: collections.deque[tuple[int, Rows]] = collections.deque()
    requests: queue.Queue = queue.Queue()
    numbers = iter(range(1 << 62))

    def resolve() -> None:
        while answered:
            number, rows = answered.popleft()
            waiting.pop(number).set_result(rows)

    class Transport:
        def send(self, item: tuple, consumer_id: int) -> None:
            wake = not answered
            answered.append((item[0], item[1][0]))
            if wake:
                loop.call_soon_threadsafe(resolve)

    async def call(row: Rows) -> Rows:
        number = next(numbers)
        future = waiting[number] = loop.create_future()
        requests.put((0, number, time.monotonic(), row))
        return await future

    batching = BatchedLoop()
    arguments = (lit_api(mode, 0.0001 if mode == "lone" else 0.01), requests, Transport(), CallbackRunner())
    thread = threading.Thread(target=batching.run_batched_loop, args=arguments, daemon=True)
    thread.start()
    yield call
    requests.put((None, None, None, None))
    await asyncio.to_thread(thread.join)


@asynccontextmanager
async def litserve_served(mode: str) -> AsyncIterator[Call]:
    """Its server's queues and worker process, called as its HTTP handler calls them."""
    import litserve
    from litserve.server import ResponseBufferItem, response_queue_to_buffer

    api = lit_api(mode, 0.0 if mode == "lone" else 0.01)
    server = litserve.LitServer(api, accelerator="cpu")
    server.app.response_queue_id = 0
    manager = server._init_manager(1)
    workers = server.launch_inference_worker(api)
    await asyncio.to_thread(server.verify_worker_status)
    answers = asyncio.create_task(
        response_queue_to_buffer(server._transport, server.response_buffer, 0, server.litapi_connector)
    )
    requests = server._get_request_queue(api.api_path)

    async def call(row: Rows) -> Rows:
        number = str(uuid.uuid4())
        event = asyncio.Event()
        server.response_buffer[number] = ResponseBufferItem(event)
        requests.put((0, number, time.monotonic(), row))
        await event.wait()
        return server.response_buffer.pop(number).response[0]

    yield call
    answers.cancel()
    for worker in workers:
        worker.terminate()
        await asyncio.to_thread(worker.join)
    await asyncio.to_thread(manager.shutdown)


PEERS: dict[str, Arm] = {
    "ray alone": ray_alone,
    "ray served": ray_served,
    "bentoml alone": bentoml_alone,
    "bentoml served": bentoml_served,
    "litserve alone": litserve_alone,
    "litserve served": litserve_served,
}

KEPT_OPEN = {"ray served", "bentoml served", "litserve served"}
"""Slow to open, or only once a process: opened once a mode and idle while ours is measured. The others each time."""


# --- measuring -------------------------------------------------------------------------------------


async def measure(call: Call, callers: int, seconds: float) -> tuple[float, float]:
    """(wall, CPU) microseconds a request."""
    calls, stop = 0, 0.0

    async def caller() -> None:
        nonlocal calls
        while True:  # at least once: on a busy machine the time may be over before
            rows = await call(ROW)
            assert rows.shape == ROW.shape
            calls += 1
            if time.monotonic() >= stop:
                return

    async def all_for(length: float) -> None:
        nonlocal calls, stop
        calls, stop = 0, time.monotonic() + length
        await asyncio.gather(*(caller() for _ in range(callers)))

    await all_for(WARM_UP)
    cpu, start = time.process_time(), time.monotonic()
    await all_for(seconds)
    return (time.monotonic() - start) / calls * 1e6, (time.process_time() - cpu) / calls * 1e6


def bare(mode: str, seconds: float) -> tuple[float, float]:
    """(wall, CPU) microseconds a row: the model called with full batches, joining and splitting included."""
    model, rows, runs = model_for(mode), [ROW] * (1 if mode == "lone" else BATCH), 0
    cpu, start = time.thread_time(), time.monotonic()
    while time.monotonic() - start < seconds:
        split(model(np.concatenate(rows)))
        runs += 1
    each = 1e6 / (runs * len(rows))
    return (time.monotonic() - start) * each, (time.thread_time() - cpu) * each


async def take_turns(name: str, mode: str, rounds: int, seconds: float) -> list[dict]:
    """One entry a round."""
    peer = PEERS[name]
    found: list[dict] = []

    async def once(arm: Arm) -> tuple[float, float]:
        async with arm(mode) as call:
            return await measure(call, MODES[mode], seconds)

    async def rounds_with(theirs: Callable[[], Awaitable[tuple[float, float]]]) -> None:
        for turn in range(rounds):
            if turn % 2 == 0:
                our, their = await once(ours), await theirs()
            else:
                their, our = await theirs(), await once(ours)
            floor = await once(nothing)
            model = await asyncio.to_thread(bare, mode, 0.2)
            found.append({"ours": our, "theirs": their, "nothing": floor, "model": model})

    if name in KEPT_OPEN:
        async with peer(mode) as call:
            await rounds_with(lambda: measure(call, MODES[mode], seconds))
    else:
        await rounds_with(lambda: once(peer))
    return found


async def main() -> None:
    """The modes asked for, of one peer."""
    name, rounds, seconds, *modes = sys.argv[1:]
    print(json.dumps({mode: await take_turns(name, mode, int(rounds), float(seconds)) for mode in modes}))


if __name__ == "__main__":
    asyncio.run(main())
