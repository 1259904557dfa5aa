"""What the steps of a run do: which variant each is built on, what is made and measured, and what became of it.

`MEASUREMENT_STEPS` is the one place that says which measurements a recipe can ask for: a new one is one entry.

The rules of a run: a technique step is built on `from`, else on the newest variant that does not break the accuracy
limit. A step that is refused, fails or breaks the limit stops only the steps that name it; those are skipped with the
reason. A variant that breaks the limit is still measured in full, and may be measured further: that is knowledge.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import Struct

from ..devices import first_device
from ..jobs import JobRequest
from ..protocol import (
    ExplainVariant,
    Failed,
    Hardware,
    Job,
    LoadSettings,
    MeasureAccuracy,
    MeasureLatency,
    MeasureProfile,
    ModelSource,
    RunTechnique,
    ScanSensitivity,
    StepStatus,
    Succeeded,
    Task,
    TestLoad,
    Variant,
)
from ..runtimes import runtimes_for, why_not_installed
from ..safety import clean_text, toml_string
from ..session import Session, SessionError
from ..session.ranking import figures_of
from ..targets import resolve_target
from ..techniques import Needs, Refusal, Technique, find_technique, parse_parameters, why_unavailable, with_defaults
from .files import RecipeStep
from .loads import known_tests, read_load, search_key
from .reuse import (
    another_baseline,
    explained_against,
    has_accuracy,
    known_explanation,
    known_profile,
    known_sensitivity,
    made_already,
    missing_batch_sizes,
    moved,
)

if TYPE_CHECKING:
    from .runner import RecipeRunner

CANCELLED = "Cancelled by the user."
"""The reason on steps and runs that the user stopped."""


class Plan(Struct, frozen=True, kw_only=True):
    """What a run is to do."""

    title: str
    source: Callable[[], ModelSource] | None = None
    """Gives the model to open; it hashes files, so it is called in a thread. None: the one that is open."""
    steps: tuple[RecipeStep, ...] = ()
    options: dict[str, Any] = {}
    """What the recipe sets in the session's options."""
    runtimes: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    device: str | None = None
    """Empty or None for these three: as the session's options say."""
    measure: bool = True
    again: bool = False
    """Measure even what was measured already."""
    against: str | None = None
    """For the measurement "explain": the variant to compare with; None: the parent."""
    load: LoadSettings | None = None
    """For the measurement "load-test"."""


# --- measurements ----------------------------------------------------------------------------------


class Where(NamedTuple):
    """One measurement that is wanted."""

    session: Session
    hardware: Hardware
    variant: Variant
    runtime: str
    device: str
    batch_sizes: tuple[int, ...]
    again: bool
    against: str | None = None
    """For an explanation: the variant to compare with."""
    load: LoadSettings | None = None
    """For a load test."""


class MeasurementStep(Struct, frozen=True, kw_only=True):
    """A measurement that a recipe can name."""

    task: Callable[[Where], Task | None]
    """What a worker has to do; None when the figures are there already. Raises SessionError where it cannot be done."""


def _accuracy(where: Where) -> Task | None:
    known = where.session.measurements.values()
    if not where.again and has_accuracy(known, where.variant, where.runtime, where.hardware):
        return None
    limit = where.session.options.accuracy_limit
    return MeasureAccuracy(variant=where.variant.id, runtime=where.runtime, limit=limit)


def _latency(where: Where) -> Task | None:
    sizes = where.batch_sizes
    if not where.again:
        known = where.session.measurements.values()
        sizes = missing_batch_sizes(known, where.variant, where.runtime, where.device, sizes, where.hardware)
        model = where.session.model
        one_size_only = model is not None and not any("batch" in tensor.shape for tensor in model.inputs)
        if one_size_only and len(sizes) < len(where.batch_sizes):
            return None
    return MeasureLatency(variant=where.variant.id, runtime=where.runtime, batch_sizes=sizes) if sizes else None


def _profile(where: Where) -> Task | None:
    size = where.batch_sizes[-1]
    if not where.again and known_profile(where.session, where.variant, where.runtime, where.device, size):
        return None
    return MeasureProfile(variant=where.variant.id, runtime=where.runtime, batch_size=size)


def _explain(where: Where) -> Task | None:
    against = explained_against(where.session, where.variant, where.against)
    if not where.again and known_explanation(where.session, where.variant, against, where.runtime):
        return None
    able = [one for one in runtimes_for(against.format) if not why_not_under(where.session, against, one)]
    if not able:
        raise SessionError(f"Nothing here runs {against.name}, so nothing can be compared with it.")
    return ExplainVariant(
        variant=where.variant.id,
        against=against.id,
        runtime=where.runtime,
        against_runtime=where.runtime if where.runtime in able else able[0],
        batch_size=where.batch_sizes[-1],
    )


def _sensitivity(where: Where) -> Task | None:
    if where.variant.format != "pytorch":
        raise SessionError(
            f"The sensitivity scan makes the layers of a PyTorch module narrower; {where.variant.name} is "
            f"{where.variant.format}. Scan the variant that it was exported from."
        )
    if where.session.model is None or "train_data" not in where.session.model.offers:
        raise SessionError("The sensitivity scan needs training data: add train_data() to the model file.")
    if not where.again and known_sensitivity(where.session, where.variant):
        return None
    return ScanSensitivity(variant=where.variant.id)


def _load_test(where: Where) -> Task | None:
    assert where.load is not None
    if where.load.url is None and (reason := why_not_under(where.session, where.variant, where.runtime)):
        raise SessionError(reason)
    processor = where.hardware.processor
    key = search_key(where.variant, where.runtime, where.device, ",".join(processor.features), where.load)
    return TestLoad(
        variant=where.variant.id,
        runtime=where.runtime,
        settings=where.load,
        search=key,
        known=() if where.again else known_tests(where.session, key),
    )


MEASUREMENT_STEPS = {
    "accuracy": MeasurementStep(task=_accuracy),
    "latency": MeasurementStep(task=_latency),
    "profile": MeasurementStep(task=_profile),
    "explain": MeasurementStep(task=_explain),
    "sensitivity": MeasurementStep(task=_sensitivity),
    "load-test": MeasurementStep(task=_load_test),
}
"""Every measurement by its word, in the order in which a new variant gets those that need no asking."""


class Measured(NamedTuple):
    """What came of measuring a variant."""

    ran: bool
    """At least one worker ran; else everything was known."""
    failed: str = ""
    """Why a measurement did not succeed; "" when all did."""
    job: str | None = None
    """The last job that ran."""


async def measure(runner: "RecipeRunner", id: str, variant: Variant, kinds: tuple[str, ...], plan: Plan) -> Measured:
    """Take those measurements of a variant that are missing, one job each, as part of run `id`.

    They are taken under the runtimes asked for that can run its format, else under its natural one. The baseline is
    always measured in its natural one: everything is compared with that.
    """
    options = runner.session.options
    able = runtimes_for(variant.format)
    if not able:
        return Measured(False, f"Nothing here runs the format {variant.format}.")
    asked = [runtime for runtime in plan.runtimes or options.runtimes if runtime in able]
    refusals = {runtime: reason for runtime in asked if (reason := why_not_under(runner.session, variant, runtime))}
    wanted = [runtime for runtime in asked if runtime not in refusals]
    if refusals and not wanted and plan.runtimes:
        return Measured(False, " ".join(refusals.values()))
    natural = [able[0]] if variant.parent is None or not wanted else []
    device = first_device(plan.device or options.device)
    ran, last = False, None
    for kind in kinds:
        make_task = MEASUREMENT_STEPS[kind].task
        under = list(dict.fromkeys([*natural, *wanted]))
        if kind in ("explain", "load-test") and not plan.runtimes:
            under = [preferred_runtime(runner.session, variant) or under[0]]
        if kind == "sensitivity":
            under = [able[0]]  # it runs the module itself, under no runtime
        for runtime in under:
            sizes = plan.batch_sizes or options.batch_sizes
            where = Where(
                runner.session, runner.hardware, variant, runtime, device, sizes, plan.again, plan.against, plan.load
            )
            task = make_task(where)
            if task is None:
                continue
            title = f"{kind.capitalize().replace('-', ' ')} of {variant.name} · {runtime}"
            request = JobRequest(task=task, title=title, kind=kind, variant=variant.id, device=device, recipe_run=id)
            job = await runner.run_job(id, request)
            ran, last = True, job.id
            if not isinstance(job.state, Succeeded):
                return Measured(ran, reason_of(job), last)
    return Measured(ran, "", last)


def preferred_runtime(session: Session, variant: Variant) -> str | None:
    """The runtime of the measurement that stands for a variant; None before it was measured."""
    best = figures_of(variant, list(session.measurements.values()), session.options).best
    return None if best is None else best.conditions.runtime


def why_not_under(session: Session, variant: Variant, runtime: str) -> str | None:
    """Why a variant whose format fits still cannot run under a runtime: one sentence, or None."""
    if reason := why_not_installed(runtime):
        return reason
    if runtime == "onnxruntime" or variant.format != "onnx" or variant.portable:
        return None
    ancestor = session.variants.get(variant.parent or "")
    while ancestor is not None and not (ancestor.portable and ancestor.format == "onnx"):
        ancestor = session.variants.get(ancestor.parent or "")
    reason = f"{runtime} cannot run {variant.name}: it has nodes that only ONNX Runtime knows."
    return reason + (f" Its last portable ancestor is {ancestor.name}." if ancestor is not None else "")


# --- steps -----------------------------------------------------------------------------------------


class Steps:
    """The steps of one run, done one after the other."""

    def __init__(self, runner: "RecipeRunner", id: str, plan: Plan, baseline: Variant) -> None:
        self.runner = runner
        self.session = runner.session
        self.id = id
        self.plan = plan
        self.good = baseline
        """The newest variant that does not break the limit: what a step without `from` is built on."""
        self.made: dict[str, Variant] = {}
        """Variants by the name the recipe gives them; the session may know them by another."""
        self.bad: dict[str, str] = {}
        """Names that no technique may build on → why, in words that follow the name."""

    async def run(self) -> None:
        """Do every step. A step's failure is recorded on it and never raised."""
        doubt = self._doubt()
        for number, step in enumerate(self.plan.steps):
            self.runner.set_step(self.id, number, status="running", notice=doubt if number == 0 else None)
            do = self._technique if step.kind == "technique" else self._measurement
            try:
                await do(number, step)
            except (SessionError, Refusal) as error:
                self._end(number, step, "failed", str(error))

    def _instead(self, chosen: Technique, source: Variant, step: RecipeStep) -> str:
        """For a technique of PyTorch modules given a graph: which ancestor it can have, and how to say so; else ""."""
        if Needs.PYTORCH not in chosen.needs or source.format == "pytorch":
            return ""
        ancestor = self.session.variants.get(source.parent or "")
        while ancestor is not None and ancestor.format != "pytorch":
            ancestor = self.session.variants.get(ancestor.parent or "")
        if ancestor is None:
            return ""
        name = next((name for name, made in self.made.items() if made.id == ancestor.id), ancestor.name)
        how = f": give the step from = {toml_string(name)}." if step.source is None else "."
        return f" Its last PyTorch ancestor is {clean_text(name, 80)}{how}"

    def _doubt(self) -> str | None:
        """Why this may be another model than the one that the recipe was recorded with, as a sentence."""
        recorded = next((step.recorded for step in self.plan.steps if step.recorded), {})
        figures = figures_of(self.good, self.session.measurements.values(), self.session.options)
        return another_baseline(figures.accuracy, recorded)

    def _end(self, number: int, step: RecipeStep, status: StepStatus, reason: str | None = None, **facts: Any) -> None:
        if status != "succeeded":
            self.bad[step.name] = status if status == "failed" else f"was {status}"
        self.runner.set_step(self.id, number, status=status, reason=reason, **facts)

    def _source_of(self, step: RecipeStep) -> Variant | None:
        """The variant the step works on; None when the step that should have made it did not."""
        if step.source is None:
            return self.good
        if step.source in self.made:
            return self.made[step.source]
        if step.source.partition("/")[0] in self.bad:
            return None
        return self.session.resolve(step.source)

    def _skip(self, number: int, step: RecipeStep) -> None:
        name = step.source or ""
        why = self.bad.get(name) or self.bad.get(name.partition("/")[0], "was not made")
        self._end(number, step, "skipped", f"{name} {why}.")

    async def _technique(self, number: int, step: RecipeStep) -> None:
        source = self._source_of(step)
        if source is None or step.source in self.bad:
            self._skip(number, step)
            return
        try:
            chosen = find_technique(step.word)
            parameters = parse_parameters(step.word, step.parameters)
        except Refusal as refusal:
            self._end(number, step, "refused", str(refusal))
            return
        session, hardware = self.session, self.runner.hardware
        target = resolve_target(step.target or session.options.target, hardware.processor)
        assert session.model is not None
        if reason := why_unavailable(chosen, source, session.model, hardware, parameters, target.name):
            self._end(number, step, "refused", reason + self._instead(chosen, source, step))
            return
        if chosen.caution is not None:
            self.runner.set_step(self.id, number, notice=chosen.caution(target))
        complete = with_defaults(parameters)
        variants = made_already(
            session.variants.values(), session.jobs, source, step.word, complete, target.name, hardware.processor
        )
        reused = bool(variants)
        if not variants:
            if target.device_class != "cuda":  # what a GPU runs does not depend on the processor beside it
                notice = moved(
                    session.variants.values(), source, step.word, complete, step.recorded or {}, hardware.processor
                )
                known = self.session.runs[self.id].steps[number].notice
                self.runner.set_step(self.id, number, notice=" ".join(filter(None, (known, notice))) or None)
            request = JobRequest(
                task=RunTechnique(technique=step.word, parameters=complete, source=source.id, target=target.name),
                title=f"{chosen.title} of {source.name}" + (f" → {step.name}" if step.name != step.word else ""),
                kind=step.word,
                variant=source.id,
                device=self.plan.device or session.options.device,
                recipe_run=self.id,
                name=step.name,
            )
            job = await self.runner.run_job(self.id, request)
            if not isinstance(job.state, Succeeded):
                self._end(number, step, failed_status(job), reason_of(job), job=job.id)
                return
            self.runner.set_step(self.id, number, job=job.id)
            variants = tuple(session.variants[id] for id in job.state.variants)
        self.runner.set_step(self.id, number, variants=tuple(variant.id for variant in variants))
        await self._measure_new(number, step, variants, reused)

    async def _measure_new(self, number: int, step: RecipeStep, variants: tuple[Variant, ...], reused: bool) -> None:
        """Measure what a technique made. The first variant is what later steps are built on."""
        for variant in variants:
            label = variant.name.partition("/")[2]
            name = step.name if variant is variants[0] or not label else f"{step.name}/{label}"
            self.made[name] = variant
            if self.plan.measure:
                outcome = await measure(self.runner, self.id, variant, ("accuracy", "latency"), self.plan)
                reused = reused and not outcome.ran
                if outcome.failed:
                    self._end(number, step, "failed", f"{variant.name} was made, but not measured. {outcome.failed}")
                    return
            if not step.beyond_limit and (broken := self._breaks_limit(variant)):
                self.bad[name] = broken
        if step.name not in self.bad:
            self.good = variants[0]
        self._end(number, step, "succeeded", reused=reused)

    def _breaks_limit(self, variant: Variant) -> str:
        """In words that follow the name, when its accuracy was measured and is proven too low; else ""."""
        options = self.session.options
        figures = figures_of(variant, self.session.measurements.values(), options)
        if figures.verdict != "FAIL" or figures.accuracy is None:
            return ""
        drop, limit = figures.accuracy.drop * 100, options.accuracy_limit * 100
        return f"breaks the accuracy limit (drop {drop:.2f} points, limit {limit:.2f})"

    async def _measurement(self, number: int, step: RecipeStep) -> None:
        source = self._source_of(step)
        if source is None:
            self._skip(number, step)
            return
        plan = msgspec.structs.replace(
            self.plan,
            runtimes=tuple(step.parameters.get("runtimes", self.plan.runtimes)),
            batch_sizes=tuple(step.parameters.get("batch_sizes", self.plan.batch_sizes)),
            device=step.parameters.get("device", self.plan.device),
            against=step.parameters.get("against", self.plan.against),
            load=self._load(step),
        )
        outcome = await measure(self.runner, self.id, source, (step.word,), plan)
        facts: dict[str, Any] = {"variants": (source.id,), "job": outcome.job}
        if outcome.failed:
            self._end(number, step, "failed", outcome.failed, **facts)
        else:
            self._end(number, step, "succeeded", reused=not outcome.ran, **facts)

    def _load(self, step: RecipeStep) -> LoadSettings | None:
        """What a load test is asked to do: the step's own keys, or the command's."""
        if step.word != "load-test":
            return None
        own = {key: value for key, value in step.parameters.items() if key not in ("runtimes", "device")}
        return read_load(own) if own else self.plan.load


def reason_of(job: Job) -> str:
    """Why a job did not succeed, as a sentence."""
    return job.state.reason if isinstance(job.state, Failed) else CANCELLED


def failed_status(job: Job) -> StepStatus:
    """What a step is after its job did not succeed."""
    if isinstance(job.state, Failed):
        return "refused" if job.state.cause == "refused" else "failed"
    return "cancelled"
