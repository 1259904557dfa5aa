"""What comes in from outside becomes an array only when it is what the model takes."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.serving.tensors import (
    MOST_JSON_VALUES,
    Problem,
    ServedTensor,
    checked_shape,
    from_bytes,
    from_json,
    from_nested_json,
)

X = ServedTensor("x", np.dtype(np.float32), (2,))
N = ServedTensor("n", np.dtype(np.int8), (None,))
FLAGS = ServedTensor("flags", np.dtype(np.bool_), (2,))


def refused(call, *arguments) -> tuple[int, str]:
    with pytest.raises(Problem) as caught:
        call(*arguments)
    return caught.value.status, str(caught.value)


@pytest.mark.parametrize(
    ("datatype", "shape", "status"),
    [
        ("FP32", [1], 400),
        ("FP32", [1, 3], 400),
        ("FP32", [0, 2], 400),
        ("FP32", [-1, 2], 400),
        ("FP32", [2**62, 2], 413),
        ("FP32", [9, 2], 413),
        ("FP64", [1, 2], 400),
        ("BYTES", [1, 2], 400),
        ("FP32", [1, 2] * 50, 400),
        ("x" * 10_000, [1, 2], 400),
    ],
)
def test_a_shape_or_type_the_model_does_not_take_is_refused_in_a_short_sentence(datatype, shape, status):
    found, sentence = refused(checked_shape, X, datatype, shape, 8)
    assert found == status
    assert len(sentence) < 400


def test_a_model_with_a_fixed_batch_takes_just_that():
    assert checked_shape(X, "FP32", [4, 2], 4, fixed_rows=4) == (4, 2)
    assert refused(checked_shape, X, "FP32", [3, 2], 4, 4) == (400, "The model takes exactly 4 rows a request, not 3.")


def test_bytes_must_be_as_many_as_the_shape_needs():
    assert refused(from_bytes, X, (1, 2), memoryview(b"1234567"))[0] == 400
    assert refused(from_bytes, X, (1, 2), memoryview(b"123456789"))[0] == 400
    array = from_bytes(X, (1, 2), memoryview(np.array([1.5, -2], "<f4").tobytes()))
    assert array.tolist() == [[1.5, -2.0]]


def test_an_array_from_bytes_is_aligned_writable_and_our_own():
    data = bytearray(b"\0" + np.array([1, 2], "<f4").tobytes())
    array = from_bytes(X, (1, 2), memoryview(data)[1:])
    data[1:5] = b"\xff" * 4
    assert array.flags.aligned
    assert array.flags.writeable
    assert array.tolist() == [[1.0, 2.0]]


def test_a_boolean_byte_is_0_or_1():
    assert from_bytes(FLAGS, (1, 2), memoryview(b"\0\1")).tolist() == [[False, True]]
    assert "0 or 1" in refused(from_bytes, FLAGS, (1, 2), memoryview(b"\0\2"))[1]


@pytest.mark.parametrize("text", [b"[1, 2, 3, 4]", b"[[1, 2], [3, 4]]", b" [\n[1,2],[3,4] ]"])
def test_json_may_be_flat_or_nested(text):
    assert from_json(X, (2, 2), text).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "text",
    [
        b"[1,2,3]",
        b"[1,2,3,4,5]",
        b'["1",2,3,4]',
        b"[[1,2,3],[4]]",
        b"[[1],[2],[3],[4]]",
        b"{}",
        b"",
        b"[1,2,3,null]",
        b"[true,2,3,4]",
        b"[1,2,3,4",
        b"\xff\xfe,,,",
        b"[" * 100_000 + b"1,2,3,4",
    ],
)
def test_json_that_is_not_the_shape_is_refused(text):
    assert refused(from_json, X, (2, 2), text)[0] == 400


@pytest.mark.parametrize("text", [b"[]", b" [ ] ", b"[[]]"])
def test_an_empty_list_is_not_one_value(text):
    assert refused(from_json, N, (1, 1), text) == (400, "Input n has 0 values; its shape [1, 1] needs 1.")


@pytest.mark.parametrize("text", [b"[1.5]", b"[300]", b"[-129]", b"[1e2]", b"[true]", b"[99999999999999999999999]"])
def test_an_integer_must_be_one_and_fit(text):
    assert refused(from_json, N, (1, 1), text)[0] == 400


def test_more_numbers_than_memory_is_given_to_are_refused_before_they_are_read():
    text = b"[" + b"," * MOST_JSON_VALUES + b"]"
    assert refused(from_nested_json, N, text, 8, None)[0] == 413
    assert refused(from_nested_json, X, b"[[1,2]" + b",[1,2]" * 8 + b"]", 8, None)[0] == 413


def test_nested_json_says_its_shape_by_itself():
    assert from_nested_json(N, b"[[1,2,3]]", 8, None).shape == (1, 3)
    assert refused(from_nested_json, N, b"[[1,2,3],[1]]", 8, None)[0] == 400
    assert refused(from_nested_json, N, b"[]", 8, None)[0] == 400
    assert refused(from_nested_json, N, b"[[]]", 8, None)[0] == 400
    assert refused(from_nested_json, X, b"[1,2]", 8, None)[0] == 400


@settings(max_examples=300, deadline=None)
@given(text=st.binary(max_size=60) | st.text('[]{},.0123456789-+eE" truefalsn', max_size=60).map(str.encode))
def test_whatever_comes_is_an_array_of_the_right_kind_or_a_sentence(text):
    for tensor in (X, N, FLAGS):
        for call, arguments in ((from_json, (tensor, (1, 2), text)), (from_nested_json, (tensor, text, 8, None))):
            with contextlib.suppress(Problem):
                array = call(*arguments)
                assert array.dtype == tensor.dtype
                assert array.ndim == 2
