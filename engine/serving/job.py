"""A server as a job: load the copies, listen, tell how it goes, and end without dropping what was accepted.

It ends in one of two ways. Asked to stop (`Steer(stop=True)`) it takes no more requests, answers those it has and
succeeds. Cancelled (SIGTERM) it does the same within the second it has and then dies of the signal, as a cancelled
job must.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..batching import BatchPolicy, DynamicBatcher
from ..context import JobCancelled, JobContext
from ..models import Model, ModelError
from ..protocol import Listening, Serve, ServeSettings, Steer
from ..runtimes import RuntimeUnavailable
from .description import describe
from .held import HeldBytes
from .served import ServedModel

if TYPE_CHECKING:
    from .grpc_service import GrpcDoor
    from .http import HttpDoor

TELL_SECONDS = 1.0
"""Between two messages on how it goes."""

DRAIN_SECONDS = 30.0
"""For the requests under way when it was asked to stop."""

CANCEL_SECONDS = 0.8
"""The same when it is cancelled: SIGKILL comes 1.2 s after SIGTERM."""

log = logging.getLogger("trimtab.serving")


def serve_variant(job: JobContext, task: Serve) -> str:
    """Serve until asked to stop; what it did, as a sentence. Raises JobCancelled, RuntimeUnavailable, ModelError."""
    settings = task.settings
    listener = _bind(settings.host, settings.port)
    try:
        from ..runtimes.copies import ModelCopies

        variant = job.variants[task.variant]
        job.progress(0, None, f"loading {variant.record.name}")
        copies = ModelCopies(job.model, variant, task.runtime, job.spec.device, job.spec.threads)
        try:
            policy = _policy(settings, job.model)
            runs = copies.runs(policy.instances)
            inputs, outputs = describe(variant, copies, policy)
            model = ServedModel(
                variant.record.name,
                inputs,
                outputs,
                DynamicBatcher(runs, policy),
                platform=f"{variant.record.format}_{task.runtime}",
                backend=task.runtime,
                also=(variant.record.id,),
                fixed_rows=job.model.fixed_batch,
            )
            return asyncio.run(_Server(job, settings, model, listener).run())
        finally:
            copies.close()
    finally:
        listener.close()


class _Server:
    """One server from its start to its end, in its own event loop."""

    def __init__(self, job: JobContext, settings: ServeSettings, model: ServedModel, listener: socket.socket) -> None:
        self._job, self._settings, self._model, self._listener = job, settings, model, listener
        self._held = HeldBytes(settings.max_request_bytes)
        self._grpc: GrpcDoor | None = None

    async def run(self) -> str:
        from .http import HttpDoor, web

        stop = asyncio.Event()
        restore = self._hear(stop)
        model, settings = self._model, self._settings
        door = HttpDoor(model, self._held)
        runner = web.AppRunner(door.application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        began = time.monotonic()
        try:
            await runner.setup()
            model.batcher.start()
            try:
                site = web.SockSite(runner, self._listener)
                await site.start()
            except OSError as error:
                raise _taken(settings.host, settings.port, error) from None
            url = _url("http", settings.host, self._listener.getsockname()[1])
            grpc_url = await self._open_grpc(self._listener.getsockname()[1])
            self._job.send(Listening(urls=(url, grpc_url) if grpc_url else (url,)))
            if not _is_loopback(settings.host):
                self._job.log(f"Listening on {settings.host}: whoever can reach this machine can use the model.")
            await self._tell_until(stop, url)
            model.closing = True
            await site.stop()
            await self._drain(door)
        finally:
            await runner.cleanup()
            restore()
        if self._job.cancelled:
            raise JobCancelled
        seconds = time.monotonic() - began
        return f"Served {model.succeeded} requests in {seconds:.0f} s at {url}."

    def _hear(self, stop: asyncio.Event) -> Callable[[], None]:
        """Have `stop` set by the engine's word or by SIGTERM; the function returned undoes the latter."""
        loop = asyncio.get_running_loop()
        before = signal.getsignal(signal.SIGTERM)

        def cancelled() -> None:
            self._job.cancel()
            stop.set()

        loop.add_signal_handler(signal.SIGTERM, cancelled)

        def hear(message: Steer) -> None:
            if message.stop:
                loop.call_soon_threadsafe(stop.set)

        self._job.hear(hear)
        if self._job.cancelled:
            raise JobCancelled

        def restore() -> None:
            loop.remove_signal_handler(signal.SIGTERM)
            signal.signal(signal.SIGTERM, before)

        return restore

    async def _open_grpc(self, http_port: int) -> str | None:
        """The gRPC door's address; None where it cannot be and nobody asked for it."""
        wanted = self._settings.grpc_port
        try:
            from .grpc_service import GrpcDoor
        except ImportError:
            if wanted is not None:
                raise RuntimeUnavailable("gRPC needs grpcio: pip install 'trimtab[serve]'") from None
            self._job.log("No gRPC: grpcio is not installed.")
            return None
        door = GrpcDoor(self._model, self._held)
        port = wanted if wanted is not None else 0 if self._settings.port == 0 else http_port + 1
        try:
            bound = await door.listen(self._settings.host, port)
        except OSError as error:
            await door.close(0)
            if wanted is not None:
                raise _taken(self._settings.host, port, error, "--grpc-port") from None
            self._job.log(f"No gRPC: port {port} is taken. Another one: --grpc-port.")
            return None
        self._grpc = door
        return _url("grpc", self._settings.host, bound)

    async def _tell_until(self, stop: asyncio.Event, url: str) -> None:
        """Say every second how it goes, until it is to end."""
        model, last, since = self._model, 0, time.monotonic()
        while not stop.is_set():
            if model.broken:
                raise ModelError(f"The model cannot go on, so the server ended: {model.broken}.")
            counts = model.counts()
            now = time.monotonic()
            rate, last, since = (counts.succeeded - last) / max(now - since, 1e-9), counts.succeeded, now
            words = [f"{rate:.0f} requests/s", f"{counts.succeeded} served"]
            if failed := sum(counts.failed.values()):
                words.append(f"{failed} failed")
            if model.batcher.depth:
                words.append(f"{model.batcher.depth} wait")
            if counts.runs:
                mean = sum(size * held.runs for size, held in counts.by_size.items()) / counts.runs
                words.append(f"{mean:.1f} rows a batch")
            self._job.progress(counts.succeeded, None, " · ".join(words))
            try:
                await asyncio.wait_for(stop.wait(), TELL_SECONDS)
            except TimeoutError:
                continue

    async def _drain(self, door: HttpDoor) -> None:
        """Answer what was accepted, as far as there is time for it."""
        seconds = CANCEL_SECONDS if self._job.cancelled else DRAIN_SECONDS
        closing = [asyncio.create_task(self._model.batcher.close(drain=True, timeout=seconds))]
        if self._grpc is not None:
            closing.append(asyncio.create_task(self._grpc.close(seconds)))
        await asyncio.wait(closing, timeout=seconds + 0.1)
        # What the model answered is still to be written.
        await asyncio.wait([asyncio.create_task(door.idle.wait())], timeout=0.1)


def _policy(settings: ServeSettings, model: Model) -> BatchPolicy:
    """Raises RuntimeUnavailable for preferred sizes beyond the largest batch."""
    largest = model.fixed_batch or settings.max_batch_size
    if too_large := [size for size in settings.preferred_batch_sizes if size > largest]:
        raise RuntimeUnavailable(
            f"A preferred batch size of {too_large[0]} is over the largest batch, {largest} rows: "
            "lower --preferred-batch-sizes or raise --max-batch-size."
        )
    return BatchPolicy(
        max_batch_size=largest,
        max_wait_ms=settings.max_wait_ms,
        wait=settings.wait,
        preferred_batch_sizes=settings.preferred_batch_sizes,
        priority_levels=settings.priority_levels,
        default_priority=(settings.priority_levels + 1) // 2,
        instances=settings.instances,
        max_queue_size=settings.max_queue_size,
        default_timeout_ms=settings.timeout_ms,
    )


def _bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises RuntimeUnavailable with a sentence."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise RuntimeUnavailable(f"There is no address {host} here: {getattr(error, 'strerror', error)}.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _taken(host, port, error) from None
    return listener


def _taken(host: str, port: int, error: OSError, option: str = "--port") -> RuntimeUnavailable:
    if error.errno == errno.EACCES:
        return RuntimeUnavailable(f"Port {port} is for the system's own services: choose one above 1023 with {option}.")
    if error.errno in (errno.EADDRINUSE, None):
        return RuntimeUnavailable(
            f"Port {port} on {host} is taken: choose another with {option}, or {option} 0 for a free one."
        )
    return RuntimeUnavailable(f"Cannot listen on {host}, port {port}: {error.strerror}.")


def _url(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
