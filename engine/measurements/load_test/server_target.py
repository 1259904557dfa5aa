"""A load sent to a running server: KServe v2 over HTTP or gRPC (Triton, KServe, `trimtab serve`), or plain JSON.

`open_target` asks the server whether it is ready and whether its model takes these requests, and sends one, before
any load. What is measured begins at the scheduled arrival and ends with the answer: the network, and the wait for a
free connection when all are taken, are part of it.

`send` only puts a request in line; an event loop in a thread of its own carries it. Queue and compute times come from
the server's own statistics where it keeps some (`with_server_figures`): means over the test, not of single requests.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import numpy as np

from ...batching.arrays import Arrays
from ...batching.executor import Deliver, clock
from ...batching.policy import BatcherClosed, DeadlineExceeded
from ...batching.queue import CLOSED, COMPLETED, EXPIRED, FAILED, REJECTED, Request
from ...protocol import Conditions, LoadSettings, LoadSummary
from ...runtimes import RuntimeUnavailable
from ...safety import clean_text
from .server_channel import Answer, Channel, Connection, Refused, Unreachable, mismatch
from .server_http import HttpChannel
from .target import Dropped

FIRST_CONNECTIONS = 8
"""Opened before the load begins; more as they are needed."""

STATUS = {200: COMPLETED, 429: REJECTED, 503: REJECTED, 504: EXPIRED, 408: EXPIRED}
"""What an answer makes of a request; FAILED for the others."""

PATIENCE_SECONDS = 60.0
"""For the questions before the load, all together: the first inference of a server may take long."""

BACK_OFF_SECONDS = 0.05
"""Before a lane that could not reach the server tries again."""

CLOSE_SECONDS = 5.0
"""For connections to end."""

T = TypeVar("T")


class ServerTarget:
    """See `Target`. Made by `open_target`."""

    def __init__(self, make_channel: Callable[[], Channel], settings: LoadSettings) -> None:
        self.settings = settings
        self.model = settings.model_name or ""
        self.name = self.version = self.platform = ""
        """What the server calls itself, and what runs the model there."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server-requests", daemon=True)
        self._thread.start()
        self.channel = self._ask(_made(make_channel))
        self._most = self.channel.most_connections
        self._payloads: dict[int, tuple[Arrays, bytes]] = {}
        """By the identity of a pool's entry, which is kept so that it stays one."""
        self._line: deque[Request] = deque()
        self._woken = False
        self._idle: list[asyncio.Future[Request]] = []
        self._lanes: set[asyncio.Task[None]] = set()
        self._done: list[Request] = []
        self._deliver: Deliver
        self._before: dict[str, Any] | None = None
        self._figures: dict[str, Any] = {}
        self._closed = False

    def natural_concurrency(self, rows: int) -> int:
        """Enough for several batches of the settings' size, whatever the server's own is."""
        return min(self._most, -(-4 * self.settings.max_batch_size // rows))

    def prepare(self, requests: Iterable[Arrays]) -> None:
        """Lay out what will be sent, before the load: nothing is encoded while times are taken."""
        for inputs in requests:
            self._payload(inputs)

    def open(self, deliver: Deliver) -> None:
        """See `Target`."""
        self._deliver = deliver
        try:
            self._ask(self._begin(), PATIENCE_SECONDS)
        except (Unreachable, FutureTimeout) as error:
            self.close()
            raise RuntimeUnavailable(f"{self._where} cannot be reached any more: {error}.") from None

    def send(self, request: Request) -> None:
        """See `Target`."""
        if len(self._line) >= self.settings.max_queue_size:
            raise Dropped(f"{self.settings.max_queue_size} requests wait for a connection already")
        if self._closed:
            raise BatcherClosed("the load test has ended")
        self._line.append(request)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._pump)

    def close(self) -> None:
        """See `Target`."""
        if self._closed:
            return
        self._closed = True
        with suppress(FutureTimeout, Unreachable):
            self._ask(self._end(), CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    def with_server_figures(self, summary: LoadSummary) -> LoadSummary:
        """The summary with what the server says of its queue, its runs and its batches during the test, once closed.

        Times are means over all requests of the test, those of the warm-up included.
        """
        return msgspec.structs.replace(
            summary,
            queue_ms=self._figures.get("queue_ms", {}),
            forming_ms=self._figures.get("forming_ms", {}),
            compute_ms=self._figures.get("compute_ms", {}),
            batch_sizes=self._figures.get("batch_sizes", {}),
        )

    # --- before the load -------------------------------------------------------------------------------

    def check(self, pool: Sequence[Arrays]) -> None:
        """Raises RuntimeUnavailable with a sentence when the load would be in vain."""
        try:
            self._ask(self._check(pool), PATIENCE_SECONDS)
        except Unreachable as error:
            raise RuntimeUnavailable(f"{self._where} cannot be reached: {clean_text(str(error), 200)}.") from None
        except Refused as error:
            why = clean_text(str(error).partition("\n")[0], 200).rstrip(".!")
            raise RuntimeUnavailable(f"{self._where} does not answer as a KServe v2 server does: {why}.") from None
        except FutureTimeout:
            raise RuntimeUnavailable(f"{self._where} does not answer within {PATIENCE_SECONDS:.0f} s.") from None

    @property
    def _where(self) -> str:
        return f"The server at {self.channel.address}"

    async def _check(self, pool: Sequence[Arrays]) -> None:
        channel, rows = self.channel, self.settings.rows_per_request
        if not await channel.ready():
            raise RuntimeUnavailable(f"{self._where} is not ready.")
        self.name, self.version = (clean_text(word, 60) for word in await channel.server())
        if not channel.plain:
            await self._find_model()
            takes, platform = await channel.metadata(self.model)
            if takes is None:
                raise RuntimeUnavailable(f"{self._where} has no model {clean_text(self.model, 80)}: {platform}")
            self.platform = clean_text(platform, 60)
            for inputs in (pool[0], pool[-1]):
                if why := mismatch(takes, _repeated(inputs, rows)):
                    model = clean_text(self.model, 80)
                    raise RuntimeUnavailable(f"{model} at {channel.address} is another model: {why}.")
        connection = await channel.connect()
        answer = await connection.call(channel.encode(self.model, _repeated(pool[0], rows)))
        connection.close()
        if answer.status != 200:
            raise RuntimeUnavailable(f"{self._where} refused a request: {answer.sentence}")

    async def _find_model(self) -> None:
        """The only model of the server when none was named."""
        if self.model:
            return
        known = await self.channel.models()
        if known is not None and len(known) == 1:
            self.model = known[0]
            return
        has = f" It has: {clean_text(', '.join(known[:10]), 300)}." if known else ""
        raise RuntimeUnavailable(f"Say which model of {self.channel.address} to test with model_name.{has}")

    # --- the load (in the loop's thread) -----------------------------------------------------------------

    async def _begin(self) -> None:
        with suppress(Unreachable):
            self._before = await self.channel.statistics(self.model)
        wanted = max(FIRST_CONNECTIONS, self.settings.concurrency or 0)
        for _ in range(min(wanted, self._most)):
            self._add_lane(await self.channel.connect())

    def _pump(self) -> None:
        """Give waiting requests to idle lanes, the one that was busy last first; open another when none is left."""
        self._woken = False
        line = self._line
        while line and self._idle:
            lane = self._idle.pop()
            if not lane.done():
                lane.set_result(line.popleft())
        if line and len(self._lanes) < self._most:
            for _ in range(min(len(line), self._most - len(self._lanes))):
                self._add_lane(None)

    def _add_lane(self, connection: Connection | None) -> None:
        lane = asyncio.ensure_future(self._carry(connection))
        self._lanes.add(lane)
        lane.add_done_callback(self._lanes.discard)

    async def _carry(self, connection: Connection | None) -> None:
        """One lane: a connection and the requests it carries, one after the other."""
        try:
            while True:
                request = self._line.popleft() if self._line else await self._turn()
                connection = await self._serve(request, connection)
        finally:
            if connection is not None:
                connection.close()

    async def _turn(self) -> Request:
        """The next request for a lane that has nothing to do."""
        turn: asyncio.Future[Request] = self._loop.create_future()
        self._idle.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was given one in the same moment
                self._settle(turn.result(), CLOSED, BatcherClosed("the load test ended before it was sent"))
            raise

    async def _serve(self, request: Request, connection: Connection | None) -> Connection | None:
        """Carry one request to its end. Returns the connection for the next one."""
        if request.deadline < clock():
            self._settle(request, EXPIRED, DeadlineExceeded("it waited for a connection longer than its limit"))
            return connection
        payload = self._payload(request.inputs or {})
        kept = connection is not None and connection.alive
        try:
            if connection is None or not connection.alive:
                connection = await self.channel.connect()
            try:
                answer = await connection.call(payload)
            except Unreachable:
                if not kept:
                    raise
                # A server may end a kept connection at any moment: that is no failure of the request.
                connection = await self.channel.connect()
                answer = await connection.call(payload)
        except Unreachable as error:
            self._settle(request, FAILED, ConnectionError(str(error)))
            await asyncio.sleep(BACK_OFF_SECONDS)
            return None
        except asyncio.CancelledError:
            self._settle(request, CLOSED, BatcherClosed("the load test ended before the answer came"))
            raise
        self._settle(request, *_outcome(answer))
        return connection

    def _settle(self, request: Request, status: int, error: Exception | None) -> None:
        """Hand it back, together with the others of this turn of the loop."""
        request.status, request.error, request.inputs = status, error, None
        if not self._done:
            self._loop.call_soon(self._hand_back)
        self._done.append(request)

    def _hand_back(self) -> None:
        done, self._done = self._done, []
        if done:
            self._deliver(done)

    async def _end(self) -> None:
        with suppress(Unreachable):
            after = await self.channel.statistics(self.model)
            self._figures = _between(self._before, after)
        waiting = list(self._line)
        self._line.clear()
        for request in waiting:
            self._settle(request, CLOSED, BatcherClosed("the load test ended before it was sent"))
        lanes = list(self._lanes)
        for lane in lanes:
            lane.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)
        self._hand_back()
        await self.channel.close()

    # --- helpers ---------------------------------------------------------------------------------------

    def _payload(self, inputs: Arrays) -> bytes:
        known = self._payloads.get(id(inputs))
        if known is None:
            known = self._payloads[id(inputs)] = (inputs, self.channel.encode(self.model, inputs))
        return known[1]

    def _ask(self, question: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        return asyncio.run_coroutine_threadsafe(question, self._loop).result(seconds)


def open_target(settings: LoadSettings, pool: Sequence[Arrays]) -> ServerTarget:
    """The server of `settings.url`, found ready for these requests. Raises RuntimeUnavailable with a sentence."""
    url = urlsplit(settings.url or "")
    timeout = int(settings.timeout_ms * 1000) if settings.timeout_ms is not None else None
    try:
        url.port  # noqa: B018  # raises for what is no port
    except ValueError:
        raise RuntimeUnavailable(f"{clean_text(settings.url or '', 120)} has no valid port.") from None

    make: Callable[[], Channel]
    if url.scheme in ("grpc", "grpcs"):
        try:
            from .server_grpc import GrpcChannel
        except ImportError:
            raise RuntimeUnavailable("gRPC needs grpcio: pip install 'trimtab[serve]'") from None
        make = functools.partial(GrpcChannel, url, timeout)
    else:
        make = functools.partial(HttpChannel, url, timeout)
    target = ServerTarget(make, settings)
    try:
        target.check(pool)
    except BaseException:
        target.close()
        raise
    return target


def server_conditions(target: ServerTarget) -> Conditions:
    """Where the load went. What the machine there is like, nobody told."""
    notes = [f"requests over {target.channel.protocol}, at most {target.channel.most_connections} at a time"]
    if target.platform:
        notes.append(f"model {target.model} ({target.platform})")
    return Conditions(
        runtime=f"{target.name} over {target.channel.protocol}",
        device=target.channel.address,
        processor="",
        versions={target.name: target.version} if target.version else {},
        notes=tuple(notes),
    )


async def _made(make: Callable[[], Channel]) -> Channel:
    """In the loop: gRPC's channels belong to the one they are made in."""
    return make()


def _outcome(answer: Answer) -> tuple[int, Exception | None]:
    status = STATUS.get(answer.status, FAILED)
    return status, None if status == COMPLETED else RuntimeError(answer.sentence)


def _repeated(inputs: Arrays, rows: int) -> Arrays:
    return inputs if rows == 1 else {name: np.repeat(array, rows, axis=0) for name, array in inputs.items()}


def _between(before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any]:
    """Mean times and batch sizes of what ran between two looks at a model's statistics (Triton's JSON)."""
    if before is None or after is None:
        return {}
    figures: dict[str, Any] = {}
    kinds = {"queue_ms": "queue", "forming_ms": "compute_input", "compute_ms": "compute_infer"}
    for name, kind in kinds.items():
        with suppress(KeyError, TypeError, ValueError):
            first, last = before["inference_stats"][kind], after["inference_stats"][kind]
            count = int(last["count"]) - int(first["count"])
            if count > 0:
                figures[name] = {"mean": (int(last["ns"]) - int(first["ns"])) / count / 1e6}
    with suppress(KeyError, TypeError, ValueError):
        known = {int(one["batch_size"]): int(one["compute_infer"]["count"]) for one in before["batch_stats"]}
        sizes = {int(one["batch_size"]): int(one["compute_infer"]["count"]) for one in after["batch_stats"]}
        fresh = {size: count - known.get(size, 0) for size, count in sorted(sizes.items())}
        figures["batch_sizes"] = {str(size): count for size, count in fresh.items() if count > 0}
    return figures
