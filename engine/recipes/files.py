"""The recipe format: a TOML file with a model, the limits and a list of steps, read into `Recipe`.

    model = "residual_cnn.py"        # relative to the recipe, as data and calibration_data are
    accuracy_limit = 0.01            # a fraction
    [[steps]]
    technique = "quantize-static"    # or measurement = "latency"; further keys are its parameters
    from = "baseline"
    name = "int8"

What a caller may rely on: `read_recipe` either returns a recipe whose words, types and parameters are all valid, or
raises RecipeError with one sentence that names the file, the place and, for a misspelt word, what was probably meant.
Nothing is run and no model is opened. Keys that are not given are None: the session's options hold for them.
"""

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from ..devices import DEVICES
from ..runtimes import RUNTIMES
from ..safety import clean_text
from ..session import SessionError
from ..targets import TARGETS
from ..techniques import Refusal, all_techniques, parse_parameters

MAX_RECIPE_BYTES = 1024 * 1024
"""A longer file is no recipe."""

TECHNIQUES = (
    "distill",
    "prune-unstructured",
    "prune-structured",
    "quantize-aware-training",
    "export-onnx",
    "optimize-graph",
    "quantize-fp16",
    "quantize-bf16",
    "quantize-dynamic",
    "quantize-static",
    "quantize-fp8",
    "quantize-int4",
    "build-tensorrt",
)
"""Every technique a recipe may name. One that this version does not have is refused when its step is reached."""

MEASUREMENTS = ("profile", "explain", "latency", "accuracy", "sensitivity", "load-test")
"""Every measurement a recipe may name."""

_TOP_KEYS = (
    "model",
    "data",
    "calibration_data",
    "accuracy_limit",
    "shapes",
    "target",
    "batch_sizes",
    "runtimes",
    "device",
    "model_sha256",
    "original_model",
    "steps",
)
_STEP_KEYS = ("technique", "measurement", "from", "name", "target", "beyond_limit", "recorded")


class RecipeError(SessionError):
    """The recipe cannot be read or cannot be run here; the text is a sentence for the user."""


class RecipeStep(Struct, frozen=True, kw_only=True):
    """One `[[steps]]` of a recipe."""

    kind: Literal["technique", "measurement"]
    word: str
    name: str
    """The name of the variant it makes, and what `from` calls it. Unique within the recipe."""
    source: str | None = None
    """`from`; None: the previous step's variant, or the last good one."""
    target: str | None = None
    beyond_limit: bool = False
    """Later steps may build on its variant even when that breaks the accuracy limit (they may win it back)."""
    parameters: dict[str, Any] = {}
    """The step's further keys, as written."""
    recorded: dict[str, Any] | None = None
    """What an export measured, for a replay to compare with."""


class Recipe(Struct, frozen=True, kw_only=True):
    """A recipe as read. Paths are absolute."""

    path: Path
    model: Path
    steps: tuple[RecipeStep, ...]
    data: Path | None = None
    calibration_data: Path | None = None
    shapes: dict[str, list[int | str]] = {}
    accuracy_limit: float | None = None
    target: str | None = None
    batch_sizes: tuple[int, ...] | None = None
    runtimes: tuple[str, ...] | None = None
    device: str | None = None
    model_sha256: str | None = None
    original_model: Path | None = None
    """Where the model file was when the recipe was exported; it may need files beside it that the copy lacks."""


def read_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe file. Raises RecipeError."""
    place = Path(path).absolute()
    shown = clean_text(place.name, 100)
    try:
        with place.open("rb") as file:
            raw = file.read(MAX_RECIPE_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"The recipe {clean_text(str(place))} cannot be read: {error.strerror}.") from None
    if len(raw) > MAX_RECIPE_BYTES:
        raise RecipeError(f"{shown} is longer than 1 MB, so it is no recipe.")
    try:
        content = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{shown} is not valid TOML: {clean_text(str(error))}.") from None
    try:
        return _recipe(content, place)
    except RecipeError as error:
        raise RecipeError(f"{shown}: {error}") from None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " Did you mean x?" when a known word is near, else the list of them all."""
    words = list(known)
    near = difflib.get_close_matches(word, words, n=1)
    return f"Did you mean {near[0]}?" if near else f"Known: {', '.join(words)}."


def _recipe(content: dict[str, Any], place: Path) -> Recipe:
    for key in content:
        if key not in _TOP_KEYS:
            raise RecipeError(f"there is no key {clean_text(key, 60)}. {did_you_mean(key, _TOP_KEYS)}")
    if not isinstance(content.get("model"), str) or not content["model"]:
        raise RecipeError('it names no model: write model = "my_model.py".')

    def file(key: str) -> Path | None:
        value = _typed(content, key, str, "a path")
        # Path joins absolute paths as they are, so both ways of writing work.
        return None if value is None else (place.parent / value).absolute()

    limit = _typed(content, "accuracy_limit", float, "a fraction such as 0.01")
    if limit is not None and not 0 <= limit < 1:
        raise RecipeError(f"accuracy_limit is a fraction: 0.01 is one percentage point, {limit} is not below 1.")
    target = _typed(content, "target", str, "a name")
    device = _typed(content, "device", str, 'a name such as "cpu"')
    sizes, runtimes = _list(content, "batch_sizes", int), _list(content, "runtimes", str)
    check_target(target)
    check_device(device)
    check_batch_sizes(sizes or ())
    check_runtimes(runtimes or ())
    shapes = _typed(content, "shapes", dict, "a table") or {}
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not all(type(axis) in (int, str) for axis in shape):
            raise RecipeError(f'shapes.{clean_text(name, 60)} is a list of sizes and names: ["batch", 3, 224, 224].')
    model = file("model")
    assert model is not None
    return Recipe(
        path=place,
        model=model,
        data=file("data"),
        calibration_data=file("calibration_data"),
        shapes=shapes,
        accuracy_limit=limit,
        target=target,
        batch_sizes=sizes,
        runtimes=runtimes,
        device=device,
        model_sha256=_typed(content, "model_sha256", str, "a SHA-256"),
        original_model=file("original_model"),
        steps=_steps(content.get("steps", []), place.parent),
    )


def _steps(raw: Any, folder: Path) -> tuple[RecipeStep, ...]:
    if not isinstance(raw, list) or not all(isinstance(step, dict) for step in raw):
        raise RecipeError("steps is a list of tables: begin each step with a line [[steps]].")
    steps: list[RecipeStep] = []
    for number, content in enumerate(raw, 1):
        if isinstance(content.get("trace"), str):  # a path, relative to the recipe as all of them
            content = {**content, "trace": str(folder / content["trace"])}
        try:
            steps.append(_step(content, {step.name for step in steps}))
        except RecipeError as error:
            raise RecipeError(f"step {number}: {error}") from None
    return tuple(steps)


def _step(content: dict[str, Any], taken: set[str]) -> RecipeStep:
    """One step, checked as far as it can be without a model."""
    kinds = [kind for kind in ("technique", "measurement") if kind in content]
    if len(kinds) != 1:
        near = next((key for key in content if difflib.get_close_matches(key, ("technique", "measurement"))), None)
        hint = f" Did you mean that with {clean_text(near, 40)}?" if near and not kinds else ""
        raise RecipeError(f'a step has either technique = "…" or measurement = "…".{hint}')
    kind: Literal["technique", "measurement"] = "technique" if kinds[0] == "technique" else "measurement"
    word = _typed(content, kind, str, "a word")
    known = (*all_techniques(), *TECHNIQUES) if kind == "technique" else MEASUREMENTS
    if word not in known:
        raise RecipeError(
            f"there is no {kind} {clean_text(str(word), 60)}. {did_you_mean(str(word), dict.fromkeys(known))}"
        )
    parameters = {key: value for key, value in content.items() if key not in _STEP_KEYS}
    if kind == "technique" and word in all_techniques():
        check_technique_parameters(word, parameters)
    elif kind == "measurement":
        _check_measurement_parameters(word, parameters)
    name = _typed(content, "name", str, "a name")
    if name is not None and (not name.strip() or name == "best" or name in taken):
        raise RecipeError(
            f"the name {clean_text(name, 60) or '(empty)'} is taken by another step or has a meaning of its own."
        )
    target = _typed(content, "target", str, "a name")
    check_target(target)
    return RecipeStep(
        kind=kind,
        word=word,
        name=name or _free_name(word, taken),
        source=_typed(content, "from", str, "a variant's name"),
        target=target,
        beyond_limit=_typed(content, "beyond_limit", bool, "true or false") or False,
        parameters=parameters,
        recorded=_typed(content, "recorded", dict, "a table"),
    )


def check_technique_parameters(word: str, parameters: dict[str, Any]) -> None:
    """Raises RecipeError for an unknown technique, or a parameter that it does not have or cannot take."""
    try:
        parse_parameters(word, parameters)
    except Refusal as refusal:
        known = all_techniques().get(word)
        fields = known.parameters.__struct_fields__ if known else ()
        wrong = next((name for name in parameters if name not in fields and name not in _STEP_KEYS), None)
        near = difflib.get_close_matches(wrong, [*fields, *_STEP_KEYS], n=1) if known and wrong else []
        hint = f" Did you mean {near[0]}?" if near else ""
        raise RecipeError(clean_text(str(refusal), 400) + hint) from None


def _check_measurement_parameters(word: str, parameters: dict[str, Any]) -> None:
    """What measurements take."""
    if word == "load-test":
        # Imported here: it needs the techniques' forms, whose sentences this module's errors carry.
        from .loads import read_load

        rest = {key: value for key, value in parameters.items() if key not in ("runtimes", "device")}
        try:
            read_load(rest)
        except SessionError as error:
            raise RecipeError(str(error).removeprefix("load-test: ")) from None
        check_runtimes(_list(parameters, "runtimes", str) or ())
        check_device(_typed(parameters, "device", str, 'a name such as "cpu"'))
        return
    known: tuple[str, ...] = ("runtimes", "device") if word == "accuracy" else ("runtimes", "device", "batch_sizes")
    if word == "sensitivity":
        known = ("device",)
    if word == "explain":
        known = (*known, "against")
        _typed(parameters, "against", str, "a variant's name")
    for key in parameters:
        if key not in known:
            raise RecipeError(f"{word} has no key {clean_text(key, 60)}. {did_you_mean(key, (*known, *_STEP_KEYS))}")
    check_runtimes(_list(parameters, "runtimes", str) or ())
    check_batch_sizes(_list(parameters, "batch_sizes", int) or ())
    check_device(_typed(parameters, "device", str, 'a name such as "cpu"'))


def check_target(target: str | None) -> None:
    """Raises RecipeError for a target that does not exist."""
    if target is not None and target not in TARGETS:
        raise RecipeError(f"there is no target {clean_text(target, 60)}. {did_you_mean(target, TARGETS)}")


def check_device(device: str | None) -> None:
    """Raises RecipeError for what is no name of devices (see `engine/devices.py`)."""
    if device is not None and not DEVICES.fullmatch(device):
        known = '"cpu", "cuda:0", "cuda:0,cuda:1", …, "cuda" for all GPUs'
        raise RecipeError(f"there is no device {clean_text(device, 60)}. Known: {known}")


def check_runtimes(runtimes: Iterable[str]) -> None:
    """Raises RecipeError for a runtime that this version does not have."""
    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise RecipeError(f"there is no runtime {clean_text(runtime, 60)}. {did_you_mean(runtime, RUNTIMES)}")


def check_batch_sizes(sizes: Iterable[int]) -> None:
    """Raises RecipeError for a batch size that is no positive number."""
    for size in sizes:
        if not 1 <= size <= 65536:
            raise RecipeError(f"{size} is no batch size: it is a whole number from 1 to 65536.")


def _free_name(word: str, taken: set[str]) -> str:
    number, name = 1, word
    while name in taken:
        number += 1
        name = f"{word}-{number}"
    return name


def _typed(content: dict[str, Any], key: str, kind: type, words: str) -> Any:
    """The value under a key, or None when it is not there. Raises RecipeError when it is of another type."""
    value = content.get(key)
    if kind is float and type(value) is int:
        value = float(value)
    if value is not None and type(value) is not kind:
        raise RecipeError(f"{key} must be {words}.")
    return value


def _list(content: dict[str, Any], key: str, kind: type) -> tuple[Any, ...] | None:
    value = content.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(type(item) is kind for item in value):
        example = "[1, 8]" if kind is int else '["pytorch", "onnxruntime"]'
        raise RecipeError(f"{key} must be a list such as {example}.")
    return tuple(value)
