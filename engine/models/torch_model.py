"""What Python and pickled model files share: a PyTorch module, its call, its files.

A subclass says how a fresh module is made (`build`) and where examples and data come from; `settle_shapes` then
makes one forward call each at batch 1 and 2, from which the names, types and open axes of inputs and outputs follow.
"""

from __future__ import annotations

import abc
import contextlib
import itertools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from ..complexity import count_macs, module_operators
from ..protocol import LayerInfo, TensorSpec, VariantDraft
from .datasets import Axes
from .importing import PASSED_ON, in_one_line, where
from .model import BATCH, Arrays, Model, ModelError, file_sha256
from .tensors import InputStructure, OutputStructure, to_array

if TYPE_CHECKING:
    from ..context import LoadedVariant

WEIGHTS = "weights.safetensors"
"""The baseline's deployed file: its state_dict, tied tensors once."""


class TorchModel(Model):
    """A model whose baseline is a PyTorch module."""

    own_runtime = "pytorch"
    structure: InputStructure
    output_structure: OutputStructure
    axes: Axes

    @abc.abstractmethod
    def build(self) -> Any:
        """A new module as the user's file makes it. Whatever it raises is turned into a sentence by `_fresh`."""

    def settle_shapes(self, one: Any, two: Any | None) -> None:
        """Learn structure and shapes from example inputs of batch 1 and batch 2 (None: there can be only one size).

        Raises ModelError when the module's forward fails on them, or they do not differ in the batch axis alone.
        """
        module = self._fresh()
        self._spare: torch.nn.Module | None = module
        self.structure = InputStructure(one, module)
        first = self.structure.arrays(one)
        second = first if two is None else self.structure.arrays(two)
        self.axes = {name: self._batch_axis(name, first[name].shape, second[name].shape) for name in first}
        if two is not None and not any(axis is not None for axis in self.axes.values()):
            raise ModelError(
                f"{self.path.name}: example_input(1) and example_input(2) have the same shape {_shapes(first)}: "
                "example_input must make a batch of the size it is asked for."
            )
        self.inputs = tuple(
            TensorSpec(name=name, dtype=str(array.dtype), shape=_marked(array.shape, self.axes[name]))
            for name, array in first.items()
        )
        raw = self._forward(module, first)
        self.output_structure = OutputStructure(raw)
        small = {name: to_array(tensor) for name, tensor in self.output_structure.tensors(raw).items()}
        large = small
        if two is not None:
            large = self.call(module, second)
        self.outputs = tuple(
            TensorSpec(name=name, dtype=str(array.dtype), shape=_output_shape(array.shape, large[name].shape))
            for name, array in small.items()
        )

    # --- modules

    def module(self) -> torch.nn.Module:
        spare, self._spare = self._spare, None
        return spare if spare is not None else self._fresh()

    def load_module(self, variant: LoadedVariant) -> torch.nn.Module:
        if variant.record.format != "pytorch":
            return super().load_module(variant)
        path = variant.path
        if path.suffix == ".safetensors":
            module = self._baseline_module(variant)
            try:
                safetensors.torch.load_model(module, path, strict=True)
            except (RuntimeError, ValueError, OSError, safetensors.SafetensorError) as error:
                raise ModelError(
                    f"The weights of {variant.record.name} do not fit what load_model() in {self.path.name} makes now: "
                    f"{in_one_line(error)}"
                ) from error
            return evaluating(module)
        return load_saved_module(path, variant.record.files[0].sha256)

    def _baseline_module(self, variant: LoadedVariant) -> torch.nn.Module:
        return self.module()

    def _fresh(self) -> torch.nn.Module:
        try:
            module = self.build()
        except PASSED_ON:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"{self.path.name}: load_model() failed{where(error, self.path)}: {in_one_line(error)}"
            ) from error
        if not isinstance(module, torch.nn.Module):
            raise ModelError(
                f"{self.path.name}: load_model() returned a {type(module).__name__}, not a torch.nn.Module."
            )
        return evaluating(module.cpu())

    # --- calls

    def call(self, module: torch.nn.Module, inputs: Arrays) -> Arrays:
        tensors = self.output_structure.tensors(self._forward(module, inputs))
        return {name: to_array(tensor) for name, tensor in tensors.items()}

    def torch_args(self, inputs: Arrays) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.structure.arguments(inputs)

    def _forward(self, module: torch.nn.Module, inputs: Arrays) -> Any:
        args, kwargs = self.structure.arguments(inputs, device_of(module))
        try:
            with torch.no_grad():  # not inference_mode: a module may cache tensors that training needs later
                return module(*args, **kwargs)
        except PASSED_ON:
            raise
        except Exception as error:
            raise ModelError(
                f"{self.path.name}: the model's forward failed on inputs {_shapes(inputs)}{where(error, self.path)}: "
                f"{in_one_line(error)}"
            ) from error

    # --- what is in it

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        leaves = [(name, m) for name, m in self._peek().named_modules() if not list(m.children())]
        return tuple(
            LayerInfo(name=name, type=type(m).__name__, parameter_count=sum(p.numel() for p in m.parameters()))
            for name, m in leaves
        )

    @property
    def operators(self) -> tuple[str, ...]:
        module = self._peek()
        return module_operators(module, lambda: self._forward(module, self.example(self.fixed_batch or 1)))

    def _peek(self) -> torch.nn.Module:
        """A module to look at: the spare one, which stays spare."""
        if self._spare is None:
            self._spare = self._fresh()
        return self._spare

    # --- files

    def write_baseline(self, directory: Path) -> VariantDraft:
        directory.mkdir(parents=True, exist_ok=True)
        module = self._peek()
        write_weights(module, directory / WEIGHTS)
        copy = f"model{self.path.suffix}"
        shutil.copyfile(self.path, directory / copy)
        batch = self.fixed_batch or 1
        macs = count_macs(module, lambda: self._forward(module, self.example(batch)))
        return VariantDraft(
            label=None,
            format="pytorch",
            files=(WEIGHTS, copy),
            deployed_files=(WEIGHTS,),
            parameter_count=sum(p.numel() for p in module.parameters()),
            macs=None if macs is None else macs // batch,
        )

    def _batch_axis(self, name: str, one: tuple[int, ...], two: tuple[int, ...]) -> int | None:
        differing = [axis for axis, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
        if len(one) != len(two) or len(differing) > 1 or any((one[a], two[a]) != (1, 2) for a in differing):
            raise ModelError(
                f"{self.path.name}: example_input(1) and example_input(2) give {name} the shapes {one} and {two}: "
                "they may differ only in the batch axis, by 1 and 2."
            )
        return differing[0] if differing else None


def evaluating(module: torch.nn.Module) -> torch.nn.Module:
    """The module in eval mode. An exported program was frozen in its mode and refuses the question."""
    with contextlib.suppress(NotImplementedError):
        module.eval()
    return module


def write_weights(module: torch.nn.Module, path: Path) -> None:
    """The state_dict as safetensors, tied tensors stored once. Raises ModelError for what is no tensor in it."""
    odd = [name for name, value in module.state_dict().items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise ModelError(
            f"The state of the model holds something that is no tensor ({odd[0]}): it cannot be stored safely."
        )
    try:
        safetensors.torch.save_model(module, str(path))
    except (RuntimeError, ValueError):  # views that overlap in part: store each on its own
        state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in module.state_dict().items()}
        safetensors.torch.save_file(state, path)


def save_module(module: torch.nn.Module, path: Path) -> None:
    """Write a derived module whole, for a variant's `files[0]` (give it the suffix `.pt`).

    It is a pickle: only `load_saved_module` reads it, and only with the hash the session recorded for it.
    Raises ModelError when the module cannot be pickled (a lambda or a local class in it).
    """
    try:
        torch.save(module.cpu().eval(), path)
    except Exception as error:
        path.unlink(missing_ok=True)
        raise ModelError(f"The module cannot be saved: {in_one_line(error)}") from error


def load_saved_module(path: Path, sha256: str) -> torch.nn.Module:
    """Read a module that `save_module` wrote. Raises ModelError unless the file has this SHA-256.

    The user's model file must have been opened in this process, so that its classes are found.
    """
    if file_sha256(path) != sha256:
        raise ModelError(f"{path.name} is not the file that was stored (its SHA-256 differs): it is not opened.")
    try:
        return torch.load(path, map_location="cpu", weights_only=False).eval()
    except Exception as error:
        raise ModelError(f"{path.name} cannot be loaded: {in_one_line(error)}") from error


def device_of(module: torch.nn.Module) -> torch.device:
    """Where a module's tensors are; the CPU for one without any."""
    tensor = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _marked(shape: tuple[int, ...], axis: int | None) -> tuple[int | str | None, ...]:
    return tuple(BATCH if position == axis else size for position, size in enumerate(shape))


def _output_shape(one: tuple[int, ...], two: tuple[int, ...]) -> tuple[int | str | None, ...]:
    """ "batch" where sizes were 1 and 2, None where they differ in another way (a count of detections)."""
    if len(one) != len(two):
        return tuple(None for _ in one)
    return tuple(a if a == b else BATCH if (a, b) == (1, 2) else None for a, b in zip(one, two, strict=True))


def _shapes(inputs: Arrays) -> str:
    return ", ".join(f"{name} {array.dtype} {tuple(array.shape)}" for name, array in inputs.items())
