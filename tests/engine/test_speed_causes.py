"""The main cause of a difference in speed, from profiles that leave no doubt: each kind is named, with its numbers."""

import pytest

from engine.measurements.causes import Machine, main_cause, profiles_disagree
from engine.measurements.operator_changes import Side, changes
from engine.protocol import OperatorTime, Ratio, Unfused

MODERN, OLD = Machine("cpu", ("avx2", "vnni")), Machine("cpu", ("avx2",))


def operator(
    kind: str, ms: float, *nodes: str, precision: str = "float32", operands: str | None = None
) -> OperatorTime:
    return OperatorTime(
        name=nodes[0] if nodes else kind, type=kind, time_ms=ms, nodes=nodes, precision=precision, operands=operands
    )


def integer(ms: float, node: str, operands: str = "uint8×int8") -> OperatorTime:
    return operator("QLinearConv", ms, node, precision="int8", operands=operands)


def conversion(ms: float) -> OperatorTime:
    return operator("QuantizeLinear", ms, "q", precision="conversion")


def side(
    *operators: OperatorTime, remainder: float = 0.0, runtime: str = "onnxruntime", macs: int | None = None
) -> Side:
    spent = sum(one.time_ms for one in operators) + remainder
    return Side("net", runtime, operators, spent, remainder, macs)


def cause(before: Side, after: Side, *unfused: Unfused, machine: Machine = MODERN) -> tuple[str, str]:
    """(kind, sentence), with the ratio that the latencies have."""
    ratio = before.latency_ms / after.latency_ms
    verdict = "FASTER" if ratio > 1.01 else "SLOWER" if ratio < 0.99 else "SAME"
    found = main_cause(
        before, after, Ratio(ratio=ratio, low=ratio, high=ratio, verdict=verdict, against="x"), unfused, machine
    )
    return found.kind, found.sentence


CONVOLUTIONS = (operator("Conv", 4.0, "a"), operator("Conv", 4.0, "b"))


def test_integers_that_pay_off() -> None:
    kind, text = cause(side(*CONVOLUTIONS), side(integer(1.0, "a"), integer(1.0, "b"), conversion(0.1)))
    assert kind == "integer-kernels"
    assert "2 QLinearConv" in text
    assert "from 8.00 ms to 2.00 ms, of 8.00 ms → 2.10 ms for the call in the profile" in text


def test_a_gain_that_integers_have_little_to_do_with_is_named_for_what_it_is() -> None:
    gone = [operator("Slice", 1.0, f"s{at}") for at in range(6)]
    after = side(integer(4.1, "a"), integer(4.1, "b"), operator("Relu", 0.5, "r"))
    kind, text = cause(side(*CONVOLUTIONS, *gone, operator("Relu", 0.5, "r")), after)
    assert kind == "fusion"
    assert "2 operators run in integers (uint8×int8; 2 QLinearConv), but most of the gain lies elsewhere" in text
    assert "from 8.00 ms to 8.20 ms, the call from 14.50 ms to 8.70 ms in the profile" in text
    assert "the largest change is Slice: 6 in 6.00 ms → none" in text


def test_integers_are_credited_where_the_rest_only_met_another_pace_of_the_machine() -> None:
    relus = [operator("Relu", 2.0, f"r{at}") for at in range(8)]
    faster = [operator("Relu", 1.0, f"r{at}") for at in range(8)]
    kind, text = cause(side(*CONVOLUTIONS, *relus), side(integer(1.0, "a"), integer(1.0, "b"), *faster))
    assert kind == "integer-kernels"
    assert "what both run alike took 2.00× as long in the first profile" in text


def test_several_kinds_are_named_where_one_is_a_small_part_of_the_gain() -> None:
    before = [operator(kind, 1.0, kind) for kind in ("Concat", "Slice", "Shape", "Gather")]
    kind, text = cause(side(*CONVOLUTIONS, *before), side(*CONVOLUTIONS, operator("Fused", 0.5, "f")))
    assert kind == "fusion"
    assert all(f"{name}: 1 in 1.00 ms → none" in text for name in ("Concat", "Slice", "Shape", "Gather"))


def test_a_gain_that_the_profiles_do_not_show_is_given_no_cause() -> None:
    ratio = Ratio(ratio=1.21, low=1.15, high=1.28, verdict="FASTER", against="x")
    before, after = side(*CONVOLUTIONS), side(operator("Conv", 9.5, "a", precision="float16"))
    assert main_cause(before, after, ratio, (), MODERN).kind == "not-seen"


def test_what_to_trust_where_profiles_and_calls_timed_in_turns_disagree() -> None:
    ratio = Ratio(ratio=1.21, low=1.15, high=1.28, verdict="FASTER", against="x")
    told = profiles_disagree(ratio, 0.721, 0.83)
    assert told.startswith("Trust the speed-up of 1.21×: both were timed in turns.")
    assert "give 0.87× (0.721 ms → 0.830 ms)" in told
    assert profiles_disagree(ratio, 1.2, 1.0) == ""
    assert "2.00×" in profiles_disagree(ratio, 2.0, 1.0)


def test_pairs_that_were_not_fused() -> None:
    left = Unfused(node="b", type="Conv", reason="Clip stands between it and its QuantizeLinear", time_ms=6.0)
    after = side(integer(1.0, "a"), operator("Conv", 6.0, "b"), conversion(2.0))
    kind, text = cause(side(*CONVOLUTIONS), after, left)
    assert kind == "unfused"
    assert "1 of 2 quantized operators run in float" in text
    assert "(b): 6.00 ms in float (4.00 ms before) and 2.00 ms for the pairs, of 9.00 ms" in text
    assert text.endswith("reason for all: Clip stands between it and its QuantizeLinear.")


@pytest.mark.parametrize("machine", [MODERN, OLD])
def test_signed_by_signed_on_a_cpu(machine: Machine) -> None:
    after = side(integer(5.0, "a", "int8×int8"), integer(5.0, "b", "int8×int8"))
    kind, text = cause(side(*CONVOLUTIONS), after, machine=machine)
    assert kind == "signed-operands"
    assert "10.00 ms against 8.00 ms in float" in text


def test_integers_without_vnni() -> None:
    after = side(integer(4.5, "a"), integer(4.5, "b"))
    assert cause(side(*CONVOLUTIONS), after, machine=OLD)[0] == "slow-integers"
    assert cause(side(*CONVOLUTIONS), after, machine=MODERN)[0] != "slow-integers"


@pytest.mark.parametrize("machine", [MODERN, OLD])
def test_four_bit_weights_that_are_unpacked_for_many_rows(machine: Machine) -> None:
    before = side(operator("MatMul", 4.0, "a"), operator("MatMul", 4.0, "b"), operator("Softmax", 9.0, "s"))
    slow = side(*(operator("MatMulNBits", 5.5, name, precision="int4") for name in "ab"), operator("Softmax", 9.0, "s"))
    kind, text = cause(before, slow, machine=machine)
    assert kind == "unpacked-weights"
    assert "2 MatMulNBits unpack their 4-bit weights in every call: 11.00 ms against 8.00 ms in float" in text
    fast = side(*(operator("MatMulNBits", 1.0, name, precision="int4") for name in "ab"), operator("Softmax", 9.0, "s"))
    assert cause(before, fast, machine=machine)[0] == "integer-kernels"


def test_a_node_that_was_taken_apart_is_found_by_its_name() -> None:
    before = side(operator("MatMul", 8.0, "fc/MatMul"))
    parts = operator("DynamicQuantizeMatMul", 2.0, "fc/MatMul/MatMulInteger", "fc/MatMul/scale", precision="int8")
    assert "from 8.00 ms to 2.00 ms" in cause(before, side(parts))[1]


def test_conversions_that_eat_the_gain() -> None:
    kind, text = cause(side(*CONVOLUTIONS), side(integer(1.0, "a"), integer(1.0, "b"), conversion(7.0)))
    assert kind == "conversions"
    assert "take 7.00 ms of 9.00 ms" in text


def test_a_float_operator_that_dominates_bounds_the_gain() -> None:
    resize = operator("Resize", 90.0, "r")
    after = side(integer(1.0, "a"), integer(1.0, "b"), resize)
    kind, text = cause(side(*CONVOLUTIONS, resize), after)
    assert kind == "float-operators"
    assert "90.00 ms of 92.00 ms to 1 Resize" in text
    assert "8 % of the time, so at most 1.09× was to be had" in text


def test_too_small_by_its_kernels_or_by_what_is_around_them() -> None:
    tiny = side(operator("Conv", 0.004, "a"), operator("Relu", 0.002, "b"))
    assert cause(tiny, side(integer(0.004, "a"), conversion(0.002)))[0] == "too-small"
    launches = side(operator("Conv", 0.05, "a"), remainder=1.0)
    assert cause(launches, side(integer(0.04, "a"), remainder=1.0))[0] == "too-small"
    assert cause(side(*CONVOLUTIONS), side(*CONVOLUTIONS))[0] == "same-operators"


def test_too_small_is_no_excuse_where_something_is_known_or_measured() -> None:
    tiny = side(operator("LSTM", 0.010, "a"), operator("Relu", 0.002, "b"))
    assert cause(tiny, side(operator("LSTM", 0.004, "a"), operator("Relu", 0.002, "b")))[0] == "operators"
    assert (
        cause(tiny, side(operator("LSTM", 0.018, "a"), operator("Relu", 0.001, "b"), operator("Add", 0.001, "c")))[0]
        == "operators"
    )
    same = Ratio(ratio=1.0, low=0.9, high=1.1, verdict="UNDECIDED", against="x")
    found = main_cause(tiny, side(integer(0.012, "a"), operator("Relu", 0.001, "b")), same, (), MODERN)
    assert found.kind == "slow-integers"
    assert "take longer than the float ones in their place: 0.012 ms against 0.010 ms" in found.sentence


def test_a_loss_is_not_blamed_on_what_stayed_in_float() -> None:
    before = side(operator("Loop", 9.0, "l"), operator("MatMul", 1.0, "m"))
    after = side(operator("Loop", 9.0, "l"), operator("DynamicQuantizeMatMul", 3.0, "m", precision="int8"))
    assert cause(before, after)[0] == "slow-integers"
    added = side(
        operator("Loop", 9.0, "l"), operator("MatMulInteger", 1.0, "m", precision="int8"), operator("Mul", 2.0)
    )
    kind, text = cause(before, added)
    assert kind == "operators"
    assert "Mul: none → 1 in 2.00 ms" in text


def test_half_precision_that_is_computed_in_float_throughout_adds_only_casts() -> None:
    tiny = [operator("Conv", 0.005, "a"), operator("Relu", 0.003, "b")]
    kind, text = cause(side(*tiny), side(*tiny, operator("Cast", 0.0001, "c")))
    assert kind == "casts"
    assert "computes every operator in float32 as before: only casts are new, 1 cast takes" in text
    slower = side(operator("Conv", 0.009, "a"), operator("Relu", 0.003, "b"), operator("Cast", 0.0001, "c"))
    kind, text = cause(side(*tiny), slower)
    assert kind == "operators"
    assert "Conv: 1 in 0.005 ms → 1 in 0.009 ms" in text


def test_casts_of_half_precision() -> None:
    half = operator("Conv", 8.0, "a", precision="float16")
    after = side(half, operator("Cast", 3.0, "c", precision="float16"))
    kind, text = cause(side(*CONVOLUTIONS), after)
    assert kind == "casts"
    assert "1 cast takes 3.00 ms of 11.00 ms, 0.000 ms before" in text


def test_fewer_multiply_adds() -> None:
    before, after = side(*CONVOLUTIONS, macs=100), side(operator("Conv", 4.0, "a"), macs=50)
    kind, text = cause(before, after)
    assert kind == "less-work"
    assert "50 % of the multiply-adds" in text
    assert "Conv: 2 in 8.00 ms → 1 in 4.00 ms" in text


def test_another_runtime() -> None:
    kind, text = cause(side(operator("Conv2d", 16.0), runtime="pytorch"), side(*CONVOLUTIONS))
    assert kind == "runtime"
    assert "under pytorch" in text


def test_fused_operators() -> None:
    parts = [operator("MatMul", 1.0, "m"), operator("Softmax", 2.0, "s"), operator("Add", 1.0, "a")]
    kind, text = cause(side(*parts), side(operator("Attention", 2.0, "m", "s", "a")))
    assert kind == "fusion"
    assert "3 operators became 1" in text


def test_changes_are_by_kind_and_precision_the_largest_first() -> None:
    rows = changes(CONVOLUTIONS, [operator("Conv", 1.0, "a"), integer(1.0, "b")])
    assert [(row.type, row.precision, row.before_ms, row.after_ms) for row in rows] == [
        ("Conv", "float32", 8.0, 1.0),
        ("QLinearConv", "int8", None, 1.0),
    ]
