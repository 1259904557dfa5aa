"""The target chooses the number formats, and moving to another class of processor is said."""

import pytest

from engine.protocol import Processor
from engine.targets import TARGETS, measured_elsewhere, moves_class, resolve_target


def processor(*features: str) -> Processor:
    return Processor(name="p", features=features, physical_cores=1, logical_cores=1, memory_bytes=1)


VNNI, AVX2, ARM = processor("avx2", "vnni"), processor("avx2"), processor("neon", "dotprod")


@pytest.mark.parametrize(
    ("here", "name", "seven_bit"), [(VNNI, "cpu-vnni", False), (AVX2, "cpu-avx2", True), (ARM, "cpu-arm", False)]
)
def test_this_machine_is_resolved_to_its_class(here, name, seven_bit):
    target = resolve_target("this-machine", here)
    assert target.name == name
    assert target.weights_7_bit is seven_bit


def test_a_processor_without_avx2_gets_the_portable_flavour():
    assert resolve_target("this-machine", processor()).name == "cpu-portable"


@pytest.mark.parametrize("name", TARGETS)
def test_every_name_resolves_everywhere_and_none_stays_this_machine(name):
    for here in (VNNI, AVX2, ARM, processor()):
        assert resolve_target(name, here).name != "this-machine"


def test_gpus_get_signed_symmetric_numbers():
    for name in ("cuda", "tensorrt"):
        target = resolve_target(name, AVX2)
        assert (target.activation_type, target.symmetric_activations) == ("int8", True)
    assert resolve_target("tensorrt", AVX2).float_type == "float16"


def test_an_unknown_target_is_refused_with_the_names():
    with pytest.raises(ValueError, match="cpu-portable"):
        resolve_target("cpu-fast", VNNI)


@pytest.mark.parametrize(
    ("made_for", "here", "word"),
    [
        ("cpu-vnni", AVX2, "saturate"),
        ("cpu-avx2", VNNI, "answers hold"),
        ("cpu-vnni", ARM, "measure"),
        ("tensorrt", VNNI, "slower"),
    ],
)
def test_moving_to_another_class_is_said_in_one_sentence(made_for, here, word):
    sentence = moves_class(made_for, here)
    assert sentence is not None
    assert word in sentence
    assert sentence.startswith(f"Made for {made_for}")


@pytest.mark.parametrize(("made_for", "here"), [("cpu-vnni", VNNI), ("cpu-portable", AVX2), ("cpu-portable", ARM)])
def test_where_the_answers_hold_nothing_is_said(made_for, here):
    assert moves_class(made_for, here) is None


def test_float_variants_move_freely():
    assert moves_class("cpu-vnni", AVX2, quantized=False) is None


def test_figures_from_another_class_are_named_with_both_classes():
    sentence = measured_elsewhere(["avx2,vnni", "avx2"], AVX2)
    assert sentence is not None
    assert sentence.startswith("Measured on x86-64 with VNNI; this is x86-64 without VNNI")
    assert measured_elsewhere(["avx2 vnni", ""], VNNI) is None
