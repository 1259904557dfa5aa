"""The user chooses a variant, a technique and its parameters, sees the command line, and applies."""

import scenes
from driver import dashboard

from engine.protocol import ApplyTechnique, CheckParameters, ListTechniques, ParametersChecked


async def test_from_the_key_to_the_engine() -> None:
    async with dashboard() as seen:
        await seen.press("down", "t")
        assert (await seen.asked(ListTechniques)).source == "v1"
        await seen.sees("Technique for onnx", "Static INT8", "Expect: size 25 %", "calibration samples")
        await seen.press("enter")
        await seen.press(*["backspace"] * 3)
        await seen.type("512")
        await seen.sees("trimtab apply quantize-static --from onnx --calibration-samples 512")
        await seen.press("enter", "enter")
        command = await seen.asked(ApplyTechnique)
        assert (command.technique, command.source, command.name) == ("quantize-static", "v1", None)
        assert command.parameters == {
            "calibration_samples": 512,
            "per_channel": True,
            "activations": None,
            "smooth": 0.5,
        }
        await seen.sees_not("Technique for onnx")


async def test_an_impossible_value_is_explained_at_once_and_cannot_be_applied() -> None:
    async with dashboard() as seen:
        await seen.press("down", "t", "enter")
        await seen.sees("calibration samples")
        await seen.type("5")
        await seen.sees("! It must be from 8 to")
        await seen.press("ctrl+s")
        assert not any(isinstance(one, ApplyTechnique) for one in seen.engine.asked)


async def test_who_applies_an_impossible_value_is_led_to_its_field_and_told() -> None:
    async with dashboard() as seen:
        await seen.press("down", "t", "enter")
        await seen.sees("calibration samples")
        await seen.type("5")
        await seen.press("down", "down")
        await seen.sees_not("! It must be from 8 to 10000.")
        await seen.press("ctrl+s")
        await seen.sees("! It must be from 8 to 10000.")
        await seen.press("backspace")
        await seen.sees_not("! It must be")


async def test_what_only_the_engine_knows_is_shown_beside_the_field() -> None:
    said = ParametersChecked(errors={"calibration_samples": "There are only 100 samples."})
    async with dashboard(answers={CheckParameters: said}) as seen:
        await seen.press("down", "t", "enter")
        await seen.sees("calibration samples")
        await seen.type("300")
        await seen.sees("There are only 100")


async def test_a_choice_and_a_switch_are_changed_by_keys() -> None:
    async with dashboard() as seen:
        await seen.press("down", "t", "enter", "tab")
        await seen.press("space", "tab", "right")
        await seen.sees("--per-channel false", "--activations uint8")


async def test_a_technique_that_cannot_be_applied_says_why() -> None:
    async with dashboard() as seen:
        await seen.press("down", "t", "end")
        await seen.sees("Not now: ONNX export works on a PyTorch module; onnx is ONNX.")
        await seen.press("ctrl+s")
        assert not any(isinstance(one, ApplyTechnique) for one in seen.engine.asked)


async def test_a_refusal_of_the_engine_keeps_the_dialog_and_what_was_typed() -> None:
    async with dashboard(answers={ApplyTechnique: "There is nothing to quantize in onnx."}) as seen:
        await seen.press("down", "t", "enter")
        await seen.sees("calibration samples")
        await seen.type("300")
        await seen.press("ctrl+s")
        await seen.sees("There is nothing to quantize in onnx.", "--calibration-samples 300")


async def test_without_a_model_the_key_says_what_to_do() -> None:
    async with dashboard(scenes.fresh()) as seen:
        await seen.sees("Open a model")
        await seen.press("escape", "t")
        await seen.sees("Open a model first (o).")
