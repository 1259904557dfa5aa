"""The server's HTTP door: KServe v2, `POST /predict` with plain JSON, Prometheus metrics.

    GET  /v2  /v2/health/live  /v2/health/ready  /metrics      POST /v2/repository/index
    GET  /v2/models/stats
    GET  /v2/models/NAME[/versions/1][/ready | /stats | /config]
    POST /v2/models/NAME[/versions/1]/infer      POST /predict

Every error is {"error": one sentence} with its status. A body is never read beyond the limit, whatever its headers
say, also after it was decompressed; all bodies together are bounded too (`held`). A caller that goes away takes its
request out of the queue.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from .. import __version__
from .bodies import LENGTH_HEADER, encode, read_infer, read_predict, write_infer, write_predict
from .held import BODY_SECONDS, HeldBytes
from .machine import MachineMetrics
from .metrics import CONTENT_TYPE, configuration, index, metadata, prometheus, statistics
from .served import ServedModel
from .tensors import Problem

JSON, BYTES = "application/json", "application/octet-stream"

EXTENSIONS = ("binary_tensor_data", "statistics", "model_configuration", "model_repository(index)", "schedule_policy")
"""Of the protocol, beyond its core."""

log = logging.getLogger("trimtab.serving")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpDoor:
    """The routes. `application` is what aiohttp runs."""

    def __init__(self, model: ServedModel, held: HeldBytes) -> None:
        self._model = model
        self.held = held
        self._machine = MachineMetrics()
        self.idle = asyncio.Event()
        """No request is without its answer."""
        self.idle.set()
        self._under_way = 0
        self.application = web.Application(middlewares=[self._in_sentences])
        router = self.application.router
        router.add_get("/v2", self._server)
        router.add_get("/v2/health/live", self._live)
        router.add_get("/v2/health/ready", self._ready)
        router.add_get("/metrics", self._metrics)
        router.add_post("/v2/repository/index", self._index)
        router.add_post("/predict", self._predict)
        router.add_get("/v2/models/stats", self._all_statistics)
        # A variant's name may hold slashes ("prune/50%"), so what stands behind it is matched first.
        for version in ("/versions/{version}", ""):
            name = "/v2/models/{name:.+}" + version
            router.add_post(f"{name}/infer", self._infer)
            router.add_get(f"{name}/ready", self._model_ready)
            router.add_get(f"{name}/stats", self._statistics)
            router.add_get(f"{name}/config", self._configuration)
        for version in ("/versions/{version}", ""):
            router.add_get("/v2/models/{name:.+}" + version, self._metadata)

    # --- about the server and the model --------------------------------------------------------------

    async def _server(self, request: web.Request) -> web.Response:
        return _json({"name": "trimtab", "version": __version__, "extensions": EXTENSIONS})

    async def _index(self, request: web.Request) -> web.Response:
        return _json(index(self._model))

    async def _live(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _ready(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self._model.ready else 503)

    async def _model_ready(self, request: web.Request) -> web.Response:
        self._demand(request)
        return await self._ready(request)

    async def _metadata(self, request: web.Request) -> web.Response:
        self._demand(request)
        return _json(metadata(self._model))

    async def _configuration(self, request: web.Request) -> web.Response:
        self._demand(request)
        return _json(configuration(self._model))

    async def _all_statistics(self, request: web.Request) -> web.Response:
        return _json({"model_stats": [statistics(self._model)]})

    async def _statistics(self, request: web.Request) -> web.Response:
        self._demand(request)
        return await self._all_statistics(request)

    async def _metrics(self, request: web.Request) -> web.Response:
        text = prometheus(self._model) + await asyncio.to_thread(self._machine.prometheus)
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    # --- inference -------------------------------------------------------------------------------------

    async def _infer(self, request: web.Request) -> web.Response:
        self._demand(request)
        async with _Body(self, request) as body:
            asked = read_infer(self._model, body, request.headers.get(LENGTH_HEADER))
            del body  # the arrays are copies
            outputs = await self._model.infer(asked.inputs, asked.timeout_us, asked.priority)
            with self._model.writing():
                answer, header_length = write_infer(self._model, asked, outputs)
        if header_length is None:
            return web.Response(body=answer, content_type=JSON)
        return web.Response(body=answer, content_type=BYTES, headers={LENGTH_HEADER: str(header_length)})

    async def _predict(self, request: web.Request) -> web.Response:
        async with _Body(self, request) as body:
            outputs = await self._model.infer(read_predict(self._model, body))
            with self._model.writing():
                answer = write_predict(self._model, outputs)
        return web.Response(body=answer, content_type=JSON)

    # --- helpers ---------------------------------------------------------------------------------------

    def _demand(self, request: web.Request) -> None:
        self._model.demand(request.match_info["name"], request.match_info.get("version", ""))

    def demand_size(self, size: int) -> None:
        if size > self.held.limit:
            raise Problem(413, f"The body is over the limit of {self.held.limit} bytes (--max-request-bytes).")

    @web.middleware
    async def _in_sentences(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Whatever goes wrong is an answer in JSON; a traceback goes to the job's log."""
        self._under_way += 1
        self.idle.clear()
        try:
            return await handler(request)
        except Problem as problem:
            if request.method == "POST":
                self._model.turned_away(problem)
            return _error(problem.status, str(problem))
        except web.HTTPException as error:
            if error.status == 404:
                return _error(404, f"There is nothing at {request.path[:200]}. See /v2/models/{self._model.name}.")
            return _error(error.status, f"{error.reason}.", dict(error.headers))
        except Exception:
            log.exception("a request failed inside the server")
            return _error(500, "The server failed; its job's log says how.")
        finally:
            self._under_way -= 1
            if not self._under_way:
                self.idle.set()


class _Body:
    """A request's body while it is needed, bounded by what was really received."""

    def __init__(self, door: HttpDoor, request: web.Request) -> None:
        self._door, self._request, self._size = door, request, 0

    async def __aenter__(self) -> bytes:
        door, pieces = self._door, []
        door.demand_size(self._request.content_length or 0)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for piece in self._request.content.iter_any():
                    door.demand_size(self._size + len(piece))
                    door.held.hold(len(piece))
                    self._size += len(piece)
                    pieces.append(piece)
        except TimeoutError:
            await self.__aexit__()
            raise Problem(408, f"The body did not come within {BODY_SECONDS:g} s.") from None
        except BaseException:
            await self.__aexit__()
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def __aexit__(self, *error: object) -> None:
        self._door.held.let_go(self._size)
        self._size = 0


def _json(value: object) -> web.Response:
    return web.Response(body=encode(value), content_type=JSON)


def _error(status: int, sentence: str, headers: dict[str, str] | None = None) -> web.Response:
    kept = {name: value for name, value in (headers or {}).items() if name == "Allow"}
    return web.Response(status=status, body=encode({"error": sentence}), content_type=JSON, headers=kept)
