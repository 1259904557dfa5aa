"""Names for what goes into and comes out of a module's forward, and the way back to its own structure.

A forward may take a tensor, several, or a dictionary, and give a tensor, a tuple, a list, a dictionary, a
dataclass or a Hugging Face `ModelOutput`, nested. Everything else in the worker knows only named numpy arrays.

Names: inputs are called as in the forward's signature, or by their keys; outputs "output" for one tensor,
"output_0", "output_1", … for a sequence, keys or field names otherwise, nested ones joined by "_".
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from .model import Arrays, ModelError

Path = tuple[Any, ...]
"""Where a tensor lies in a structure: keys, field names and indices from the outside in."""


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as a numpy array without a copy where possible; bfloat16, which numpy lacks, becomes float32."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    return tensor.cpu().resolve_conj().resolve_neg().numpy()


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """An array as a CPU tensor, sharing memory unless the array is read-only or oddly laid out."""
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array) if array.ndim else torch.as_tensor(array)


class InputStructure:
    """How named arrays become the arguments of one module's forward, learnt from one example input."""

    def __init__(self, example: Any, module: torch.nn.Module) -> None:
        """`example`: what `example_input` returned. Raises ModelError for what cannot be an input."""
        parameters = _parameters(module)
        self.constants: dict[str, Any] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.form: str
        if isinstance(example, torch.Tensor | np.ndarray):
            self.form, items = "tensor", {_first(parameters, "input"): example}
        elif isinstance(example, Mapping):
            accepted = parameters is None or {str(key) for key in example} <= set(parameters[0]) or parameters[1]
            self.form, items = (
                ("keywords" if accepted else "mapping"),
                {str(key): value for key, value in example.items()},
            )
        elif isinstance(example, tuple | list):
            self.form = "sequence"
            names = list(parameters[0]) if parameters else []
            items = {names[i] if i < len(names) else f"input_{i}": value for i, value in enumerate(example)}
        else:
            raise ModelError(
                f"example_input() returned a {type(example).__name__}: it must be a tensor, a tuple or a dict of "
                "tensors."
            )
        self.order = tuple(items)
        for name, value in items.items():
            if isinstance(value, torch.Tensor | np.ndarray):
                self.dtypes[name] = torch.as_tensor(value).dtype
            elif value is None or isinstance(value, bool | int | float | str):
                self.constants[name] = value
            else:
                raise ModelError(
                    f"example_input() returned a {type(value).__name__} for {name}: only tensors, numbers and None can "
                    "be arguments; unpack it in the model's forward."
                )
        if not self.dtypes:
            raise ModelError("example_input() returned no tensor at all.")
        self.names = tuple(self.dtypes)

    def arrays(self, value: Any) -> Arrays:
        """A value of the example's structure as named arrays. Raises ModelError where the structure differs."""
        if self.form == "tensor":
            if isinstance(value, tuple | list) and len(value) == 1:
                value = value[0]
            items = {self.names[0]: value}
        elif self.form in ("keywords", "mapping"):
            if not isinstance(value, Mapping):
                raise ModelError(f"inputs are a {type(value).__name__}, but example_input() gave a dict.")
            items = {name: value[name] for name in self.names if name in value}
        else:
            if not isinstance(value, tuple | list) or len(value) != len(self.order):
                raise ModelError(f"inputs must be a tuple of {len(self.order)}, as example_input() gave it.")
            items = {name: item for name, item in zip(self.order, value, strict=True) if name in self.dtypes}
        missing = [name for name in self.names if name not in items]
        if missing:
            raise ModelError(f"the input {missing[0]} is missing.")
        return {name: to_array(torch.as_tensor(item)) for name, item in items.items()}

    def arguments(self, inputs: Arrays, device: torch.device | str = "cpu") -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) of a forward call, tensors of the example's types on `device`."""
        tensors = {name: to_tensor(inputs[name]).to(device, self.dtypes[name]) for name in self.names}
        values = {name: tensors.get(name, self.constants.get(name)) for name in self.order}
        if self.form == "keywords":
            return (), values
        if self.form == "mapping":
            return (values,), {}
        return tuple(values.values()), {}


class OutputStructure:
    """How the outputs of one module flatten into named tensors, and back. Learnt from one forward call."""

    def __init__(self, output: Any) -> None:
        """`output`: what the forward returned. Raises ModelError when there is no tensor in it."""
        self.template = output
        found = list(_walk(output, ()))
        if not found:
            raise ModelError(f"the model's forward returned a {type(output).__name__} without any tensor in it.")
        self.paths: dict[str, Path] = {}
        for path, _ in found:
            name = _joined(path) or "output"
            if name[0].isdigit():
                name = f"output_{name}"
            while name in self.paths:
                name += "_"
            self.paths[name] = path
        self.names = tuple(self.paths)

    def tensors(self, output: Any) -> dict[str, torch.Tensor]:
        """The tensors of an output by name."""
        found = dict(_walk(output, ()))
        missing = [name for name, path in self.paths.items() if path not in found]
        if missing:
            raise ModelError(f"the model's forward returned no {missing[0]} this time, though it did before.")
        return {name: found[path] for name, path in self.paths.items()}

    def rebuild(self, outputs: Arrays) -> Any:
        """Named arrays in the structure the forward returned, as CPU tensors: what the user's functions expect."""
        by_path = {path: to_tensor(np.asarray(outputs[name])) for name, path in self.paths.items() if name in outputs}
        return _rebuild(self.template, (), by_path)


def tensors_by_path(value: Any) -> dict[Path, torch.Tensor]:
    """Every tensor in a structure by where it lies; a tensor alone lies at ()."""
    return dict(_walk(value, ()))


def with_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same structure with every tensor in it changed."""
    return _rebuild(value, (), {path: change(tensor) for path, tensor in _walk(value, ())})


def _parameters(module: torch.nn.Module) -> tuple[list[str], bool] | None:
    """Names of the forward's parameters and whether it takes any keyword; None when it has no signature."""
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):
        return None
    kinds = inspect.Parameter
    named = [
        p.name for p in signature.parameters.values() if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]
    named += [p.name for p in signature.parameters.values() if p.kind is kinds.KEYWORD_ONLY]
    return named, any(p.kind is kinds.VAR_KEYWORD for p in signature.parameters.values())


def _first(parameters: tuple[list[str], bool] | None, default: str) -> str:
    return parameters[0][0] if parameters and parameters[0] else default


def _children(value: Any) -> list[tuple[Any, Any]]:
    """What lies directly inside a structure: (key, value) pairs; empty for anything that is no structure."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []


def _walk(value: Any, path: Path) -> Any:
    if isinstance(value, torch.Tensor):
        yield path, value
    else:
        for key, child in _children(value):
            yield from _walk(child, (*path, key))


def _joined(path: Path) -> str:
    return "_".join(str(key) for key in path)


def _rebuild(template: Any, path: Path, by_path: dict[Path, torch.Tensor]) -> Any:
    if isinstance(template, torch.Tensor):
        return by_path.get(path)
    children = {key: _rebuild(child, (*path, key), by_path) for key, child in _children(template)}
    if not children:
        return template
    if isinstance(template, tuple) and hasattr(template, "_fields"):
        return type(template)(*children.values())
    if isinstance(template, tuple | list):
        return type(template)(children.values())
    if dataclasses.is_dataclass(template) or type(template) is not dict:
        try:
            return type(template)(**children)
        except TypeError:
            pass
    return children
