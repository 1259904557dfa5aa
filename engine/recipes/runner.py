"""Run a list of steps: open the model, make variants, measure each, and stop what is built on something bad.

A recipe file, a single `apply`, `open` and `measure` all become one `Plan` and take the same way through the queue:

    run = runner.start_recipe(RunRecipe(...))     # returns at once; each change is published as RunChanged

What a caller may rely on: everything that can be refused without a model is refused by `start_…` with RecipeError,
before anything runs. A run ends with `finished` set; an ended run has no step that is queued or running. What the
session holds already is not done again. Steps never raise into the engine. Runs in the engine's event loop.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ..devices import missing_device
from ..jobs import JobRequest, Jobs
from ..protocol import (
    ApplyTechnique,
    EngineEvent,
    InspectModel,
    Job,
    MeasureVariant,
    ModelOpened,
    ModelSource,
    OpenModel,
    OptionsChanged,
    RecipeRun,
    RunChanged,
    RunLoadTest,
    RunRecipe,
    SessionOptions,
    Step,
    StepStatus,
    Succeeded,
    Variant,
)
from ..safety import clean_text
from ..session import Session, SessionError
from ..techniques import Refusal
from .files import (
    RecipeError,
    RecipeStep,
    check_batch_sizes,
    check_device,
    check_runtimes,
    check_target,
    check_technique_parameters,
    read_recipe,
)
from .loads import read_load
from .sources import difference, source_of, why_not_this_model
from .steps import CANCELLED, MEASUREMENT_STEPS, Plan, Steps, measure, reason_of

log = logging.getLogger("trimtab.recipes")


class _Ended(Exception):
    """The run cannot go on; the text, if any, says why. `silent`: the engine is ending, the next one will say so."""

    def __init__(self, reason: str = "", *, silent: bool = False) -> None:
        super().__init__(reason)
        self.silent = silent


class RecipeRunner:
    """Starts and cancels runs. `publish` takes events, whose `seq` it fills in."""

    def __init__(self, session: Session, jobs: Jobs, publish: Callable[[EngineEvent], None]) -> None:
        self.session = session
        self.jobs = jobs
        self.hardware = jobs.hardware
        self._publish = publish
        self._cancelled: set[str] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._opening = asyncio.Lock()

    # --- starting ----------------------------------------------------------------------------------

    def start_open(self, command: OpenModel) -> RecipeRun:
        """Make a model the session's baseline and measure it; over at once when that is done already."""

        def source() -> ModelSource:
            return source_of(
                command.path, command.data, command.calibration_data, command.shapes, trusted=command.trusted
            )

        why_not_this_model(Path(command.path), command.trusted)
        return self._start(Plan(title=f"Open {Path(command.path).name}", source=source, measure=command.measure))

    def start_recipe(self, command: RunRecipe) -> RecipeRun:
        """Run a recipe file. Raises RecipeError for anything wrong in it, and for a model file that is not there."""
        recipe = read_recipe(command.path)
        self._check_device(recipe.device)
        model = Path(command.model).absolute() if command.model else recipe.model
        # An exported recipe knows where the model came from: beside the copy, files that it needs may be missing.
        original = recipe.original_model if command.model is None else None
        if original is None or not original.exists():
            why_not_this_model(model, command.trusted)
        expected = recipe.model_sha256 if command.model is None else None

        def source() -> ModelSource:
            data, calibration = (str(path) if path else None for path in (recipe.data, recipe.calibration_data))
            return source_of(
                str(model),
                data,
                calibration,
                recipe.shapes,
                trusted=command.trusted,
                sha256=expected,
                original=original,
            )

        chosen = {name: getattr(recipe, name) for name in SessionOptions.__struct_fields__}
        options = {name: value for name, value in chosen.items() if value is not None}
        return self._start(Plan(title=recipe.path.name, source=source, steps=recipe.steps, options=options))

    def start_apply(self, command: ApplyTechnique) -> RecipeRun:
        """Apply one technique to one variant. Raises RecipeError for parameters that are not valid."""
        self._needs_model()
        source = self.session.resolve(command.source)
        check_technique_parameters(command.technique, command.parameters)
        check_target(command.target)
        check_runtimes(command.runtimes)
        check_batch_sizes(command.batch_sizes)
        step = RecipeStep(
            kind="technique",
            word=command.technique,
            name=command.name or command.technique,
            source=source.id,
            target=command.target,
            parameters=command.parameters,
        )
        return self._start(
            Plan(
                title=f"{command.technique} from {source.name}",
                steps=(step,),
                runtimes=command.runtimes,
                batch_sizes=command.batch_sizes,
                measure=command.measure,
            )
        )

    def start_measure(self, command: MeasureVariant) -> RecipeRun:
        """Measure a variant, whether it was measured before or not."""
        self._needs_model()
        variant = self.session.resolve(command.variant)
        check_runtimes(command.runtimes)
        check_batch_sizes(command.batch_sizes)
        check_device(command.device)
        self._check_device(command.device)
        unknown = [kind for kind in command.kinds if kind not in MEASUREMENT_STEPS]
        if unknown or not command.kinds:
            known = ", ".join(MEASUREMENT_STEPS)
            raise RecipeError(f"There is no measurement {clean_text(', '.join(unknown), 60)}. Known: {known}.")
        steps = tuple(RecipeStep(kind="measurement", word=kind, name=kind, source=variant.id) for kind in command.kinds)
        return self._start(
            Plan(
                title=f"Measure {variant.name}",
                steps=steps,
                runtimes=command.runtimes,
                batch_sizes=command.batch_sizes,
                device=command.device,
                again=True,
                against=self.session.resolve(command.against).id if command.against else None,
            )
        )

    def start_load_test(self, command: RunLoadTest) -> RecipeRun:
        """Load-test a variant. A search that was cancelled goes on where it stopped. Raises SessionError."""
        self._needs_model()
        variant = self.session.resolve(command.variant)
        given = msgspec.to_builtins(command.settings)
        given.pop("type", None)
        settings = read_load(given)
        check_runtimes((command.runtime,) if command.runtime else ())
        check_device(command.device)
        self._check_device(command.device)
        step = RecipeStep(kind="measurement", word="load-test", name="load-test", source=variant.id)
        titles = {"run": "Load test of", "rate": "Highest rate of", "sweep": "Sweep over batching of"}
        return self._start(
            Plan(
                title=f"{titles[settings.kind]} {variant.name}",
                steps=(step,),
                runtimes=(command.runtime,) if command.runtime else (),
                device=command.device,
                again=command.again,
                load=settings,
            )
        )

    def cancel(self, run_id: str) -> bool:
        """Stop a run: its job now, its other steps for good. False when it has ended already."""
        if run_id not in self._tasks:
            return False
        self._cancelled.add(run_id)
        for job in list(self.session.jobs.values()):
            if job.recipe_run == run_id and not job.is_done:
                self.jobs.cancel(job.id)
        return True

    def _start(self, plan: Plan) -> RecipeRun:
        steps = tuple(Step(name=step.name, kind=step.kind, word=step.word) for step in plan.steps)
        run = RecipeRun(id=self.session.new_id(), title=plan.title, created=time.time(), steps=steps)
        self._keep(run)
        task = asyncio.create_task(self._run(run.id, plan), name=f"run {run.id}")
        self._tasks[run.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(run.id, None))
        return run

    def _needs_model(self) -> None:
        if self.session.model is None or self.session.baseline is None:
            raise RecipeError("No model is open in this session. Open one first: trimtab MODEL")

    def _check_device(self, device: str | None) -> None:
        if device is not None and (missing := missing_device(device, len(self.hardware.gpus))):
            raise RecipeError(f"There is no device {missing} here: {self.hardware.gpu_status}.")

    # --- one run -----------------------------------------------------------------------------------

    async def _run(self, id: str, plan: Plan) -> None:
        """A run from its model to its last step. Never raises."""
        error: str | None = None
        try:
            baseline = await self._open(id, plan)
            await Steps(self, id, plan, baseline).run()
        except _Ended as end:
            if end.silent:
                return
            error = str(end)
        except (SessionError, Refusal) as refusal:
            error = str(refusal)
        except Exception as failure:
            log.exception("run %s failed inside the engine", id)
            error = f"The engine failed to run this: {type(failure).__name__}: {failure} (see engine.log)."
        if id in self._cancelled:
            error = CANCELLED
            self._cancelled.discard(id)
        self._finish(id, error)

    async def _open(self, id: str, plan: Plan) -> Variant:
        """The baseline of the plan's model, opened and measured if need be."""
        session = self.session
        source = None if plan.source is None else await asyncio.to_thread(plan.source)
        # Two recipes started together must not both make a baseline.
        async with self._opening:
            self._check_going(id)
            if source is not None:
                await self._make_baseline(id, source)
            baseline = session.baseline
            if baseline is None or session.model is None:
                raise _Ended("No model is open in this session.")
            options = msgspec.structs.replace(session.options, **plan.options)
            if options != session.options:
                session.set_options(options)
                self._publish(OptionsChanged(seq=0, options=options))
            if plan.measure and source is not None:
                failed = (await measure(self, id, baseline, ("accuracy", "latency"), plan)).failed
                if failed:
                    raise _Ended(f"The baseline could not be measured. {failed}")
        return baseline

    async def _make_baseline(self, id: str, source: ModelSource) -> None:
        session = self.session
        if session.model is not None and session.baseline is not None:
            known = session.model.source
            why = await asyncio.to_thread(difference, known, source)
            if why:
                raise _Ended(why)
            if known != source and not Path(known.path).exists():
                # The file was moved: workers have to find it where it is now.
                session.set_model(msgspec.structs.replace(session.model, source=source))
                self._publish(ModelOpened(seq=0, model=session.model))
            return
        request = JobRequest(
            task=InspectModel(),
            title=f"Open {Path(source.path).name}",
            kind="open-model",
            device="cpu",
            recipe_run=id,
            source=source,
        )
        job = await self.run_job(id, request)
        if not isinstance(job.state, Succeeded):
            raise _Ended(reason_of(job))

    async def run_job(self, id: str, request: JobRequest) -> Job:
        """A job of a run, to its end. Ends the run when the user cancelled it or the engine is ending."""
        self._check_going(id)
        job = await self.jobs.run(request)
        self._check_going(id)
        return job

    def _check_going(self, id: str) -> None:
        if self.jobs.closed:
            raise _Ended(silent=True)
        if id in self._cancelled:
            raise _Ended(CANCELLED)

    def set_step(self, id: str, number: int, **changes: Any) -> None:
        """Change one step of a run, for all to see."""
        run = self.session.runs[id]
        steps = list(run.steps)
        steps[number] = msgspec.structs.replace(steps[number], **changes)
        self._keep(msgspec.structs.replace(run, steps=tuple(steps)))

    def _finish(self, id: str, error: str | None) -> None:
        """End the run. Steps that did not come to their end share its fate."""
        run = self.session.runs[id]
        cancelled = error == CANCELLED
        steps = []
        for step in run.steps:
            if step.status == "running":
                status: StepStatus = "cancelled" if cancelled else "failed"
                step = msgspec.structs.replace(step, status=status, reason=error or "The run ended.")
            elif step.status == "queued":
                status = "cancelled" if cancelled else "skipped"
                step = msgspec.structs.replace(step, status=status, reason=error or "The run ended.")
            steps.append(step)
        self._keep(msgspec.structs.replace(run, steps=tuple(steps), finished=time.time(), error=error))

    def _keep(self, run: RecipeRun) -> None:
        self.session.put_run(run)
        self._publish(RunChanged(seq=0, run=run))
