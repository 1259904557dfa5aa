"""Why is a variant (not) faster? An answer that is known is shown at once; else the engine is asked, once."""

import msgspec
import scenes
from driver import dashboard

from engine.protocol import (
    ApplyTechnique,
    Explanation,
    Failed,
    Job,
    LayerError,
    MeasurementAdded,
    MeasureVariant,
    OperatorChange,
    OperatorTime,
    Profile,
    Ratio,
    RecipeRun,
    Step,
    Unfused,
)
from tui.screens.explain import name_without

ANSWER = Explanation(
    id="e1",
    variant="v2",
    against="v1",
    job="j9",
    created=scenes.NOW,
    conditions=scenes.latency("v2", 8, 1.0, 1.0).conditions,
    against_conditions=scenes.latency("v1", 8, 1.0, 1.0).conditions,
    batch_size=8,
    speedup=Ratio(ratio=0.41, low=0.40, high=0.42, verdict="SLOWER", against="onnx", against_variant="v1"),
    cause="3 of 9 quantized operators run in float, because their pairs were not fused.",
    cause_kind="unfused",
    latency_ms=9.0,
    against_latency_ms=4.0,
    operators=(),
    against_operators=(),
    changes=(
        OperatorChange(type="FusedConv[/]", precision="float32", before_ms=None, after_ms=6.5, after_calls=3),
        OperatorChange(type="Conv", precision="float32", before_ms=3.25, after_ms=None, before_calls=9),
    ),
    remainder_ms=0.5,
    against_remainder_ms=0.25,
    unfused=(Unfused(node="conv\x1b[31m7", type="Conv", reason="Clip stands between", time_ms=2.0),),
    missing_features=("vnni",),
    layers=(
        LayerError(node="quiet", type="Conv", cosine=0.9999, sqnr_db=40.0, drop_db=1.0),
        LayerError(node="loud", type="Add", cosine=0.91, sqnr_db=7.5, drop_db=22.5, exclude="loud"),
        LayerError(node="softmax", type="Softmax", cosine=0.9, sqnr_db=7.0, drop_db=0.5),
    ),
)


async def test_a_known_answer_is_there_at_once() -> None:
    work = scenes.work()
    known = msgspec.structs.replace(work, measurements=(*work.measurements, ANSWER))
    async with dashboard(known, size=(110, 40)) as seen:
        await seen.press("down", "down", "w")
        await seen.sees("Why? int8 against onnx", "0.41", "SLOWER", "3 of 9 quantized operators run in float")
        await seen.sees("FusedConv[/]", "3× 6.50", "9× 3.25", "Clip stands between", "missing here: vnni", "conv␛[31m7")
        assert seen.text.index("loud") < seen.text.index("quiet")
        assert not any(isinstance(one, MeasureVariant) for one in seen.engine.asked)
        await seen.press("escape")
        await seen.sees("1 Variants")


async def test_an_unknown_one_is_found_out_and_appears() -> None:
    async with dashboard(size=(110, 40)) as seen:
        await seen.press("down", "down", "w")
        command = await seen.asked(MeasureVariant)
        assert (command.variant, command.kinds, command.against) == ("v2", ("explain",), "v1")
        await seen.sees("timed and profiled side by side")
        seen.engine.push(MeasurementAdded(seq=0, measurement=ANSWER))
        await seen.sees("3 of 9 quantized operators run in float")
        assert sum(isinstance(one, MeasureVariant) for one in seen.engine.asked) == 1


async def test_a_failure_stands_only_with_the_variant_it_was_explained_against() -> None:
    failed = Job(
        id="j9",
        kind="explain",
        title="Explain int8",
        created=scenes.NOW,
        state=Failed(started=scenes.NOW, finished=scenes.NOW, reason="onnx cannot run here."),
        variant="v2",
        against="v1",
    )
    work = scenes.work()
    async with dashboard(msgspec.structs.replace(work, jobs=(*work.jobs, failed)), size=(110, 40)) as seen:
        await seen.press("down", "down", "w")
        await seen.sees("Why? int8 against onnx", "Not found out: onnx cannot run here.")
        await seen.press("n")
        await seen.sees_not("against onnx")
        await seen.sees("timed and profiled side by side")
        await seen.sees_not("Not found out")


async def test_the_layer_that_breaks_accuracy_is_left_out_with_one_key() -> None:
    work = scenes.work()
    variants = tuple(
        msgspec.structs.replace(one, parameters={"exclude": ["first"]}) if one.id == "v2" else one
        for one in work.variants
    )
    known = msgspec.structs.replace(work, variants=variants, measurements=(*work.measurements, ANSWER))
    async with dashboard(known, size=(110, 40)) as seen:
        await seen.press("down", "down", "w")
        await seen.sees("loud")
        await seen.press("x")
        command = await seen.asked(ApplyTechnique)
        assert (command.technique, command.source) == ("quantize-static", "v1")
        assert command.parameters == {"exclude": ["first", "loud"]}
        assert command.name == "int8-less-loud"
        await seen.sees("int8-less-loud will be made with loud in float")


def test_the_name_of_a_variant_tells_the_layer_and_is_nobodys() -> None:
    work = scenes.work()
    int8 = next(one for one in work.variants if one.id == "v2")
    assert name_without(int8, "/12/Gemm", work) == "int8-less-12"
    deep = "distilbert.transformer.layer.0.attention.v_lin/MatMul"
    assert name_without(int8, deep, work) == "int8-less-layer.0.attention.v_lin"
    made = msgspec.structs.replace(int8, id="v9", name="int8-less-12")
    step = Step(name="int8-less-12-2", kind="technique", word="quantize-static")
    run = RecipeRun(id="r", title="int8", created=scenes.NOW, steps=(step,))
    later = msgspec.structs.replace(work, variants=(*work.variants, made), runs=(run,))
    assert name_without(int8, "/12/Gemm", later) == "int8-less-12-3"


async def test_a_layer_that_was_never_quantized_is_not_left_in_float_once_more() -> None:
    work = scenes.work()
    variants = tuple(
        msgspec.structs.replace(one, parameters={"exclude": []}) if one.id == "v2" else one for one in work.variants
    )
    known = msgspec.structs.replace(work, variants=variants, measurements=(*work.measurements, ANSWER))
    async with dashboard(known, size=(110, 40)) as seen:
        await seen.press("down", "down", "w")
        await seen.sees("loud", "Softmax, float")
        await seen.press("end", "x")
        await seen.sees("softmax was not quantized by int8: it is in float already")
        assert not any(isinstance(one, ApplyTechnique) for one in seen.engine.asked)


async def test_in_an_answer_of_an_older_session_layers_go_by_their_own_names() -> None:
    work = scenes.work()
    variants = tuple(
        msgspec.structs.replace(one, parameters={"exclude": []}) if one.id == "v2" else one for one in work.variants
    )
    layers = tuple(msgspec.structs.replace(one, exclude=None) for one in ANSWER.layers)
    older = msgspec.structs.replace(ANSWER, layers=layers)
    known = msgspec.structs.replace(work, variants=variants, measurements=(*work.measurements, older))
    async with dashboard(known, size=(110, 40)) as seen:
        await seen.press("down", "down", "w")
        await seen.sees("loud")
        await seen.sees_not(", float")
        await seen.press("x")
        assert (await seen.asked(ApplyTechnique)).parameters == {"exclude": ["loud"]}


async def test_of_the_baseline_one_sees_where_its_time_goes() -> None:
    profile = Profile(
        id="p1",
        variant="v0",
        job="j9",
        created=scenes.NOW,
        conditions=scenes.latency("v0", 8, 1.0, 1.0).conditions,
        batch_size=8,
        latency_ms=9.0,
        operators=(
            OperatorTime(name="stem\x1b[31m", type="Conv2d", time_ms=6.25, share=0.69, precision="float32"),
            OperatorTime(name="head", type="Linear", time_ms=1.5, share=0.17),
        ),
        remainder_ms=1.25,
        sentence="2 operators take 7.75 ms of the 9 ms a call takes.",
    )
    async with dashboard(size=(110, 40)) as seen:
        await seen.press("home", "w")
        command = await seen.asked(MeasureVariant)
        assert command.kinds == ("profile",)
        await seen.sees("Where the time goes: baseline", "is being profiled")
        seen.engine.push(MeasurementAdded(seq=0, measurement=msgspec.structs.replace(profile, variant=command.variant)))
        await seen.sees(
            "2 operators take 7.75 ms", "6.25", "69 %", "stem␛[31m", "Conv2d float32", "1.25", "around them"
        )
        await seen.press("escape")
        await seen.sees("1 Variants")
