"""The registry of techniques: each is a typed parameter struct and a function.

The struct is the single source for the form in the dashboard, the command line's options, the recipe's keys
and the validation sentences. Importing this package never imports torch, onnx or numpy: a technique's module
keeps its heavy imports inside its functions, because the engine process lists techniques and must stay light.
"""

import enum
import importlib
import importlib.util
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from ..protocol import Changed, Field, Hardware, ModelInfo, TechniqueInfo, Variant
from ..safety import clean_text
from ..targets import Target, resolve_target

MODULES = (
    "distillation",
    "pruning",
    "quantization_aware_training",
    "quantization",
    "half_precision",
    "fp8_quantization",
    "weight_quantization",
    "onnx_conversion",
    "graph_optimization",
)
"""The modules of this package that define techniques, in the order the dashboard lists them."""

GROUPS = ("distillation", "pruning", "quantization", "ONNX conversion", "TensorRT conversion")
"""The groups a technique may belong to, in the order of the pipeline."""


class Parameters(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every parameter struct. Its tag is the technique's word everywhere outside."""


class Needs(enum.Flag):
    """What must be there before a technique can run; each missing thing has one sentence."""

    NOTHING = 0
    PYTORCH = enum.auto()
    """The source variant is a PyTorch module."""
    ONNX = enum.auto()
    """The source variant is an ONNX graph."""
    TRAIN_DATA = enum.auto()
    CALIBRATION_DATA = enum.auto()
    """calibration_data, train_data or labelled data to split."""
    STUDENT_MODEL = enum.auto()


class Technique(Struct, frozen=True, kw_only=True):
    """One registered technique."""

    tag: str
    title: str
    group: str
    summary: str
    parameters: type[Parameters]
    function: Callable[..., list[Any]]
    needs: Needs
    complexity: typing.Literal["low", "medium", "high"]
    expectation: str
    packages: tuple[tuple[str, str], ...]
    refuse: Callable[[Variant, ModelInfo, Hardware, Parameters | None], str | None] | None
    refuse_target: Callable[[Variant, Target, Parameters | None], str | None] | None = None
    caution: Callable[[Target], str | None] | None = None


class Refusal(Exception):
    """Raised by a technique that cannot apply, or that would change nothing; its text is the user's sentence."""


_registry: dict[str, Technique] = {}

P = TypeVar("P", bound=Parameters)


def technique(
    title: str,
    *,
    group: str,
    parameters: type[P],
    needs: Needs = Needs.NOTHING,
    complexity: typing.Literal["low", "medium", "high"] = "low",
    expectation: str = "",
    packages: tuple[tuple[str, str], ...] = (),
    refuse: Callable[[Variant, ModelInfo, Hardware, Any], str | None] | None = None,
    refuse_target: Callable[[Variant, Target, Any], str | None] | None = None,
    caution: Callable[[Target], str | None] | None = None,
) -> Callable[[Callable[..., list[Any]]], Callable[..., list[Any]]]:
    """Register a function `(source: LoadedVariant, parameters, job: JobContext) -> list[VariantFiles]`.

    `packages` are (import name, what to install) pairs checked without importing them. `refuse` gets the source
    variant, the model, the hardware and the parameters (None while the user has not chosen any) and returns the
    sentence that says why not, or None. `refuse_target` does so for where the variant is to run, before any job starts.
    `caution` gives what should be known before it runs there all the same. They run in the engine process, so they must
    be quick and light.
    """

    def register(function: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        tag = parameters.__struct_config__.tag
        assert isinstance(tag, str)
        assert group in GROUPS
        _registry[tag] = Technique(
            tag=tag,
            title=title,
            group=group,
            summary=(function.__doc__ or "").strip().split("\n")[0],
            parameters=parameters,
            function=function,
            needs=needs,
            complexity=complexity,
            expectation=expectation,
            packages=packages,
            refuse=refuse,
            refuse_target=refuse_target,
            caution=caution,
        )
        return function

    return register


def all_techniques() -> dict[str, Technique]:
    """Every technique by tag, in the order of `MODULES`."""
    for module in MODULES:
        importlib.import_module(f".{module}", __package__)
    return _registry


def find_technique(tag: str) -> Technique:
    """The technique with this tag. Raises Refusal with the known tags if there is none."""
    techniques = all_techniques()
    if tag not in techniques:
        raise Refusal(f"There is no technique {tag!r}. Known: {', '.join(techniques)}.")
    return techniques[tag]


def parse_parameters(tag: str, raw: dict[str, Any]) -> Parameters:
    """Raw values (from a form, a recipe or the command line) as the technique's struct.

    Raises Refusal with a sentence that names the parameter. Strings are accepted for numbers, booleans and lists
    ("fc,head"): a command line has nothing else.
    """
    chosen = find_technique(tag)
    known = {field.name: field for field in fields_of(chosen.parameters)}
    for name in raw:
        if name not in known:
            raise Refusal(f"{tag} has no parameter {name!r}. It has: {', '.join(sorted(known)) or 'none'}.")
    raw = {
        name: value.replace(",", " ").split() if isinstance(value, str) and known[name].kind == "list" else value
        for name, value in raw.items()
    }
    try:
        return msgspec.convert(raw, chosen.parameters, strict=False)
    except msgspec.ValidationError as error:
        text = str(error)
        if " - at `$." in text:
            what, _, where = text.partition(" - at `$.")
            field = known.get(where.rstrip("`"))
            if field is not None and field.kind == "choice":
                what = f"{clean_text(str(raw[field.name]), 60)!r} is none of {', '.join(field.choices)}"
            if field is not None and field.kind == "list":
                what = 'It is a list: names with commas between them, or JSON such as ["a", "b"]'
            raise Refusal(f"{tag}: {where.rstrip('`')}: {what[0].lower()}{what[1:]}.") from None
        raise Refusal(f"{tag}: {text}.") from None


def check_parameters(tag: str, raw: dict[str, Any]) -> dict[str, str]:
    """Field name → sentence for each parameter that is not valid; "" for what concerns no single field."""
    errors: dict[str, str] = {}
    for name, value in raw.items():
        try:
            parse_parameters(tag, {name: value})
        except Refusal as refusal:
            errors[name] = str(refusal)
    if not errors:
        try:
            parse_parameters(tag, raw)
        except Refusal as refusal:
            errors[""] = str(refusal)
    return errors


def with_defaults(parameters: Parameters) -> dict[str, Any]:
    """The struct as plain data, complete; this is what a variant records and a recipe prints."""
    plain = msgspec.to_builtins(parameters)
    return {info.name: plain[info.name] for info in _own_first(type(parameters))}


def fields_of(parameters: type[Struct]) -> tuple[Field, ...]:
    """The struct's fields as the client sees them: those that the technique shares with others come last."""
    fields = []
    for info in _own_first(parameters):
        kind, details = _describe(info.type)
        default = None if info.default is msgspec.NODEFAULT else info.default
        if info.default_factory is not msgspec.NODEFAULT:
            default = info.default_factory()
        fields.append(Field(name=info.name, kind=kind, default=default, **details))
    return tuple(fields)


def _own_first(parameters: type[Struct]) -> list[msgspec.structs.FieldInfo]:
    """The fields that the struct itself defines, then the inherited ones, each in their order."""
    own = inspect.get_annotations(parameters)
    return sorted(msgspec.structs.fields(parameters), key=lambda info: info.name not in own)


def _describe(annotation: Any) -> tuple[Any, dict[str, Any]]:
    """The kind of input a type annotation asks for, and its limits."""
    details: dict[str, Any] = {}
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        base, *metas = typing.get_args(annotation)
        kind, details = _describe(base)
        for meta in metas:
            if isinstance(meta, Meta):
                if meta.description:
                    details["description"] = meta.description
                if meta.extra and "empty" in meta.extra:
                    details["empty"] = meta.extra["empty"]
                if meta.ge is not None or meta.gt is not None:
                    details["minimum"] = meta.ge if meta.ge is not None else meta.gt
                    details["exclusive_minimum"] = meta.gt is not None
                if meta.le is not None or meta.lt is not None:
                    details["maximum"] = meta.le if meta.le is not None else meta.lt
                    details["exclusive_maximum"] = meta.lt is not None
        return kind, details
    if origin in (typing.Union, types.UnionType):
        inner = [part for part in typing.get_args(annotation) if part is not type(None)]
        kind, details = _describe(inner[0])
        return kind, details | {"optional": True}
    if origin is typing.Literal:
        return "choice", {"choices": tuple(str(value) for value in typing.get_args(annotation))}
    if origin in (list, tuple):
        return "list", details
    plain = {int: "integer", float: "number", bool: "boolean", str: "text"}
    return plain[annotation], details


def why_unavailable(
    chosen: Technique,
    variant: Variant,
    model: ModelInfo,
    hardware: Hardware,
    parameters: Parameters | None = None,
    target: str = "this-machine",
) -> str | None:
    """Why the technique cannot be applied to this variant for this target: one sentence, or None when it can."""
    offers = set(model.offers)
    if Needs.PYTORCH in chosen.needs and variant.format != "pytorch":
        return f"{chosen.title} works on a PyTorch module; {variant.name} is {variant.format.upper()}."
    if Needs.ONNX in chosen.needs and variant.format != "onnx":
        return f"{chosen.title} works on an ONNX graph: apply export-onnx to {variant.name} first."
    # what no data would change is said before data is asked for
    if chosen.refuse is not None and (reason := chosen.refuse(variant, model, hardware, parameters)):
        return reason
    if chosen.refuse_target is not None:
        runs_on = resolve_target(target, hardware.processor)
        if reason := chosen.refuse_target(variant, runs_on, parameters):
            return reason
    if Needs.TRAIN_DATA in chosen.needs and "train_data" not in offers:
        return f"{chosen.title} needs training data: add train_data() to the model file."
    no_data = not offers & {"calibration_data", "train_data", "test_data"}
    if Needs.CALIBRATION_DATA in chosen.needs and no_data and not getattr(parameters, "synthetic", False):
        return (
            f"{chosen.title} needs data to calibrate on: add calibration_data() to the model file "
            '(or calibration_data = "calib.npz" for an .onnx), or set synthetic = true.'
        )
    if Needs.STUDENT_MODEL in chosen.needs and "student_model" not in offers:
        return f"{chosen.title} needs a student: add student_model() to the model file."
    for package, install in chosen.packages:
        if importlib.util.find_spec(package) is None:
            return f"{chosen.title} needs the package {package}, which is not installed: {install}"
    return None


def describe(
    variant: Variant | None, model: ModelInfo | None, hardware: Hardware | None, target: str = "this-machine"
) -> tuple[TechniqueInfo, ...]:
    """Every technique with its form, and for this variant and target why it cannot be applied now.

    Without a variant nothing is asked of the hardware, which may be None then.
    """
    infos = []
    for chosen in all_techniques().values():
        reason: str | None = "Open a model first."
        if variant is not None and model is not None and hardware is not None:
            reason = why_unavailable(chosen, variant, model, hardware, target=target)
        infos.append(
            TechniqueInfo(
                tag=chosen.tag,
                title=chosen.title,
                group=chosen.group,
                summary=chosen.summary,
                fields=fields_of(chosen.parameters),
                unavailable=reason,
                expectation=chosen.expectation,
            )
        )
    return tuple(infos)


__all__ = [
    "GROUPS",
    "MODULES",
    "Changed",
    "Needs",
    "Parameters",
    "Refusal",
    "Technique",
    "all_techniques",
    "check_parameters",
    "describe",
    "fields_of",
    "find_technique",
    "parse_parameters",
    "technique",
    "why_unavailable",
    "with_defaults",
]
