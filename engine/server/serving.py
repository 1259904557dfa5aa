"""What `ServeVariant` and `StopServing` do: a server is a job of its own, outside any recipe run.

It goes on when the client that asked for it is gone, like every job; it ends when it is stopped, cancelled, or the
engine ends.
"""

import importlib.util
from typing import TYPE_CHECKING

from ..devices import first_device, missing_device
from ..jobs import JobRequest
from ..protocol import Done, JobAccepted, Result, Serve, ServeVariant, StopServing
from ..recipes.files import check_device, check_runtimes
from ..recipes.steps import preferred_runtime, why_not_under
from ..runtimes import runtimes_for
from ..safety import clean_text
from ..session import SessionError

if TYPE_CHECKING:
    from .server import Engine


def serve(engine: "Engine", command: ServeVariant) -> Result:
    """Queue the server. Raises SessionError for what can be known before a worker runs."""
    session, settings = engine.session, command.settings
    if session.model is None:
        raise SessionError("No model is open in this session. Open one first: trimtab MODEL")
    if importlib.util.find_spec("aiohttp") is None:
        raise SessionError("Serving needs aiohttp: pip install 'trimtab[serve]'")
    variant = session.resolve(command.variant)
    check_runtimes((command.runtime,) if command.runtime else ())
    check_device(command.device)
    device = first_device(command.device or session.options.device)
    if missing := missing_device(device, len(engine.hardware.gpus)):
        raise SessionError(f"There is no device {missing} here: {engine.hardware.gpu_status}.")
    able = runtimes_for(variant.format)
    if not able:
        raise SessionError(f"Nothing here runs the format {variant.format}.")
    runtime = command.runtime or preferred_runtime(session, variant) or able[0]
    if runtime not in able:
        raise SessionError(f"{runtime} cannot run {clean_text(variant.name, 80)}, which is {variant.format}.")
    if reason := why_not_under(session, variant, runtime):
        raise SessionError(reason)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    where = f"http://{host}:{settings.port}" if settings.port else f"http://{host}"
    request = JobRequest(
        task=Serve(variant=variant.id, runtime=runtime, settings=settings),
        title=f"Serve {variant.name} on {clean_text(where, 120)}",
        kind="serve",
        variant=variant.id,
        device=device,
    )
    return JobAccepted(job=engine.jobs.submit(request))


def stop_serving(engine: "Engine", command: StopServing) -> Result:
    """Let a server end in its own time."""
    if command.job not in engine.session.jobs:
        raise SessionError(f"There is no job {clean_text(command.job, 40)}.")
    engine.jobs.stop_serving(command.job)
    return Done()
