"""What each command does: one function from command to result. Whatever says no says it in one sentence.

Commands act on the session, the queue and the recipes, and publish what they changed; the reply goes out after the
events. Long work (exports) happens in a thread, so that the engine answers everyone else meanwhile.
"""

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from ..devices import first_device
from ..exports import explanation, export_variants, load_tests, recipe_text, results
from ..jobs.logs import read_piece
from ..paths import LOG_NAME
from ..protocol import (
    METRIC_POINTS,
    ApplyTechnique,
    CancelJob,
    CancelRun,
    CheckParameters,
    Command,
    DeleteVariant,
    DescribeLoadTest,
    Done,
    Exported,
    ExportVariants,
    GetExplanation,
    GetLoadTest,
    GetProfile,
    GetRecipe,
    GetResults,
    ListTechniques,
    LoadHistory,
    LoadKnobs,
    LoadSearch,
    LoadTest,
    MeasureVariant,
    MetricHistory,
    OpenModel,
    OptionsChanged,
    ParametersChecked,
    ReadLoad,
    ReadLog,
    ReadMetrics,
    ReadTelemetry,
    Reply,
    Result,
    RunAccepted,
    RunLoadTest,
    RunRecipe,
    ServeVariant,
    SetOptions,
    SetTelemetryRate,
    Steer,
    SteerLoad,
    StopEngine,
    StopServing,
    Techniques,
    TelemetryHistory,
    Text,
    VariantRemoved,
)
from ..recipes.files import check_batch_sizes, check_device, check_runtimes, check_target
from ..recipes.loads import check_knobs, check_load, describe_load_test
from ..recipes.reuse import explained_against, known_explanation, known_profile
from ..runtimes import why_not_installed
from ..session import SessionError
from ..session.history import thin_ticks
from ..techniques import Refusal, check_parameters, describe
from .serving import serve, stop_serving

if TYPE_CHECKING:
    from .connections import Connection
    from .server import Engine

log = logging.getLogger("trimtab.commands")


class CommandError(Exception):
    """The command cannot be done; the text is the user's sentence."""


async def answer(engine: "Engine", connection: "Connection", command: Command) -> Reply:
    """Do a command. Never raises: an error of ours is a sentence too, with its traceback in the engine's log."""
    try:
        return Reply(request=command.request, result=await _do(engine, connection, command))
    except (CommandError, SessionError, Refusal, ValueError) as error:
        return Reply(request=command.request, error=str(error))
    except (OSError, sqlite3.Error) as error:
        log.exception("%s failed", type(command).__name__)
        return Reply(request=command.request, error=f"That failed: {error}.")
    except Exception as error:
        log.exception("%s failed", type(command).__name__)
        return Reply(
            request=command.request, error=f"The engine failed: {type(error).__name__}: {error} (see engine.log)."
        )


async def _do(engine: "Engine", connection: "Connection", command: Command) -> Result:
    action = _ACTIONS.get(type(command))
    if action is None:
        raise CommandError(f"This engine does not do {type(command).__name__}.")
    engine.heard()
    result = action(engine, command)
    if asyncio.iscoroutine(result):
        result = await result
    if isinstance(command, SetTelemetryRate):
        connection.set_rate(command.hz)
        engine.sampler.wake()
    return result


# --- making ----------------------------------------------------------------------------------------


def _open_model(engine: "Engine", command: OpenModel) -> Result:
    _check_paths(command.path, command.data, command.calibration_data)
    return RunAccepted(run=engine.recipes.start_open(command))


def _run_recipe(engine: "Engine", command: RunRecipe) -> Result:
    _check_paths(command.path, command.model)
    return RunAccepted(run=engine.recipes.start_recipe(command))


def _apply(engine: "Engine", command: ApplyTechnique) -> Result:
    return RunAccepted(run=engine.recipes.start_apply(command))


def _measure(engine: "Engine", command: MeasureVariant) -> Result:
    return RunAccepted(run=engine.recipes.start_measure(command))


def _load_test(engine: "Engine", command: RunLoadTest) -> Result:
    return RunAccepted(run=engine.recipes.start_load_test(command))


def _check_paths(*paths: str | None) -> None:
    """The engine's current directory is not the user's, so a relative path would mean something else here."""
    for path in paths:
        if path is not None and not os.path.isabs(path):
            raise CommandError(f"The engine needs the whole path of {path}, from / on.")


def _techniques(engine: "Engine", command: ListTechniques) -> Result:
    # Whoever looks at the techniques is about to apply one.
    engine.workers.warm()
    session = engine.session
    variant = session.resolve(command.source) if command.source is not None else None
    return Techniques(techniques=describe(variant, session.model, engine.hardware, session.options.target))


def _describe_load_test(engine: "Engine", command: DescribeLoadTest) -> Result:
    engine.workers.warm()
    variant = engine.session.resolve(command.variant) if command.variant is not None else engine.session.baseline
    return Techniques(techniques=(describe_load_test(variant, None),))


def _check(engine: "Engine", command: CheckParameters) -> Result:
    if command.technique == "load-test":
        return ParametersChecked(errors=check_load(command.parameters))
    return ParametersChecked(errors=check_parameters(command.technique, command.parameters))


# --- changing --------------------------------------------------------------------------------------


def _cancel_job(engine: "Engine", command: CancelJob) -> Result:
    if command.job not in engine.session.jobs:
        raise CommandError(f"There is no job {command.job}.")
    if not engine.jobs.cancel(command.job):
        raise CommandError("The job has ended already.")
    return Done()


def _steer(engine: "Engine", command: SteerLoad) -> Result:
    if command.job not in engine.session.jobs:
        raise CommandError(f"There is no job {command.job}.")
    settings = engine.jobs.load_of(command.job)
    if settings is not None and settings.kind != "run" and command.knobs != LoadKnobs():
        what = "sweep" if settings.kind == "sweep" else "search"
        raise CommandError(f"A {what} chooses load and batching by itself: it can only be stopped or cancelled.")
    engine.jobs.steer(command.job, Steer(knobs=check_knobs(command.knobs, settings), stop=command.stop))
    return Done()


def _cancel_run(engine: "Engine", command: CancelRun) -> Result:
    run = engine.session.runs.get(command.run)
    if run is None:
        raise CommandError(f"There is no run {command.run}.")
    if run.finished is not None:
        raise CommandError("The run has ended already.")
    engine.recipes.cancel(command.run)
    return Done()


def _delete(engine: "Engine", command: DeleteVariant) -> Result:
    variant = engine.session.resolve(command.variant)
    engine.session.delete_variant(variant.id)
    engine.publish(VariantRemoved(seq=0, variant=variant.id))
    return Done()


def _set_options(engine: "Engine", command: SetOptions) -> Result:
    changes = {
        name: value
        for name in ("accuracy_limit", "batch_sizes", "runtimes", "target", "device")
        if (value := getattr(command, name)) is not None
    }
    limit = changes.get("accuracy_limit", 0.01)
    if not 0 <= limit <= 1:
        raise CommandError(f"The accuracy limit is a fraction between 0 and 1 (0.01 is one point), not {limit}.")
    if command.batch_sizes == ():
        raise CommandError("At least one batch size is needed to measure at.")
    check_batch_sizes(command.batch_sizes or ())
    check_runtimes(command.runtimes or ())
    if missing := next(filter(None, map(why_not_installed, command.runtimes or ())), None):
        raise CommandError(f"{missing}.")
    check_target(command.target)
    check_device(command.device)
    options = msgspec.structs.replace(engine.session.options, **changes)
    engine.session.set_options(options)
    engine.publish(OptionsChanged(seq=0, options=options))
    return Done()


def _stop(engine: "Engine", command: StopEngine) -> Result:
    if not engine.jobs.idle and not command.cancel_jobs:
        count = len(engine.jobs.running) or 1
        raise CommandError(
            f"{count} job{'s' if count > 1 else ''} would be cancelled: wait, or say so (trimtab stop --cancel-jobs)."
        )
    engine.stop("A client asked for it.")
    return Done()


def _set_rate(engine: "Engine", command: SetTelemetryRate) -> Result:
    return Done()


# --- reading ---------------------------------------------------------------------------------------


def _results(engine: "Engine", command: GetResults) -> Result:
    text, status = results.render(
        engine.session,
        command.command,
        command.format,
        run=command.run,
        variants=command.variants,
        runtime=command.runtime,
    )
    return Text(text=text, status=status)


def _explanation(engine: "Engine", command: GetExplanation) -> Result:
    session = engine.session
    variant = session.resolve(command.variant)
    against = explained_against(session, variant, command.against)
    found = known_explanation(session, variant, against, command.runtime)
    return Text(text="" if found is None else explanation.render(session, found, command.format))


def _profile(engine: "Engine", command: GetProfile) -> Result:
    session = engine.session
    variant = session.resolve(command.variant)
    found = known_profile(session, variant, command.runtime, first_device(session.options.device), 0)
    return Text(text="" if found is None else explanation.render_profile(session, found, command.format))


def _read_load(engine: "Engine", command: ReadLoad) -> Result:
    settings = engine.jobs.load_of(command.job) or engine.session.load(command.job)
    if settings is None:
        found = [one for one in engine.session.measurements.values() if one.job == command.job]
        whole = (one for one in found if isinstance(one, LoadSearch) or (isinstance(one, LoadTest) and not one.search))
        settings = next((one.settings for one in whole), None)
    ticks = tuple(thin_ticks(engine.session.ticks(command.job), command.limit))
    return LoadHistory(ticks=ticks, settings=settings)


def _get_load_test(engine: "Engine", command: GetLoadTest) -> Result:
    variant = engine.session.resolve(command.variant) if command.variant is not None else None
    text = load_tests.render(engine.session, variant, command.job, command.format)
    return Text(text=text)


def _recipe(engine: "Engine", command: GetRecipe) -> Result:
    return Text(text=recipe_text(engine.session, engine.session.resolve(command.variant)))


async def _export(engine: "Engine", command: ExportVariants) -> Exported:
    _check_paths(command.to)
    variants = tuple(engine.session.resolve(word) for word in command.variants)
    return await asyncio.to_thread(export_variants, engine.session, variants, command.to, command.overwrite)


def _log(engine: "Engine", command: ReadLog) -> Result:
    if command.job is None:
        return read_piece(engine.session.directory / LOG_NAME, command.offset)
    if command.job not in engine.session.jobs:
        raise CommandError(f"There is no job {command.job}.")
    return read_piece(engine.session.log_path(command.job), command.offset)


def _metrics(engine: "Engine", command: ReadMetrics) -> Result:
    offset = max(command.offset, 0)
    return MetricHistory(points=tuple(engine.session.metrics(command.job)[offset : offset + METRIC_POINTS]))


def _telemetry(engine: "Engine", command: ReadTelemetry) -> Result:
    return TelemetryHistory(samples=tuple(engine.session.telemetry(command.since, command.limit)))


_ACTIONS: dict[type[Command], Callable[["Engine", Any], Any]] = {
    OpenModel: _open_model,
    RunRecipe: _run_recipe,
    ApplyTechnique: _apply,
    MeasureVariant: _measure,
    RunLoadTest: _load_test,
    SteerLoad: _steer,
    ServeVariant: serve,
    StopServing: stop_serving,
    DescribeLoadTest: _describe_load_test,
    ReadLoad: _read_load,
    GetLoadTest: _get_load_test,
    ListTechniques: _techniques,
    CheckParameters: _check,
    CancelJob: _cancel_job,
    CancelRun: _cancel_run,
    DeleteVariant: _delete,
    SetOptions: _set_options,
    StopEngine: _stop,
    SetTelemetryRate: _set_rate,
    GetResults: _results,
    GetExplanation: _explanation,
    GetProfile: _profile,
    GetRecipe: _recipe,
    ExportVariants: _export,
    ReadLog: _log,
    ReadMetrics: _metrics,
    ReadTelemetry: _telemetry,
}
