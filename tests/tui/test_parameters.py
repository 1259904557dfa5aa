"""What a user types becomes a value or a sentence; a form and its command line mean the same."""

import shlex
import subprocess
import sys

import pytest

from engine.client import technique_forms
from engine.protocol import Field
from tui.parameters import command_line, hint, limits, parse, written
from tui.technique_help import technique_help

SAMPLES = Field(name="samples", kind="integer", minimum=8, maximum=10_000, default=256, description="how many")
SHARE = Field(name="ratio", kind="number", minimum=0, maximum=1, exclusive_minimum=True, exclusive_maximum=True)
FORMAT = Field(name="format", kind="choice", choices=("uint8", "int8"), optional=True)
NAMES = Field(name="protect", kind="list", default=[])


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        (SAMPLES, "512", 512),
        (SAMPLES, "", 256),
        (SHARE, "0.3", 0.3),
        (SHARE, "30 %", 0.3),
        (FORMAT, "", None),
        (FORMAT, "int8", "int8"),
        (NAMES, "a, b 3", ["a", "b", 3]),
    ],
)
def test_a_valid_text_becomes_its_value_and_reads_back(field: Field, text: str, value: object) -> None:
    assert parse(field, text) == value
    assert parse(field, written(field, value)) == value


@pytest.mark.parametrize(
    ("field", "text", "sentence"),
    [
        (SAMPLES, "many", "A whole number from 8 to 10000, not 'many'."),
        (SAMPLES, "7", "It must be from 8 to 10000."),
        (SHARE, "0", "It must be above 0 and below 1."),
        (SHARE, "1", "It must be above 0 and below 1."),
        (SHARE, "nan", "It must be above 0 and below 1."),
        (FORMAT, "int4", "One of uint8, int8."),
    ],
)
def test_an_invalid_text_is_refused_with_a_sentence_that_says_what_is_allowed(
    field: Field, text: str, sentence: str
) -> None:
    with pytest.raises(ValueError) as caught:
        parse(field, text)
    assert str(caught.value) == sentence


def test_the_range_is_written_in_words() -> None:
    assert limits(Field(name="x", kind="integer", minimum=1)) == " from 1"
    assert limits(Field(name="x", kind="integer", maximum=8)) == " up to 8"
    assert hint(FORMAT) == "Empty: automatic."
    assert hint(Field(name="limit", kind="number", optional=True, empty="none")) == "Empty: none."
    said = Field(name="seconds", kind="number", optional=True, description="of sending; empty: 10")
    assert hint(said) == "Of sending; empty: 10"
    assert hint(SAMPLES) == "How many (from 8 to 10000)"


def test_the_command_line_says_what_differs_from_the_defaults() -> None:
    values = {"samples": 512, "ratio": 0.5, "per_channel": False, "protect": ["head"], "format": None}
    line = command_line("quantize-static", "my onnx", values, {"ratio": 0.5}, "small")
    assert shlex.split(line) == [
        "trimtab", "apply", "quantize-static", "--from", "my onnx", "--samples", "512", "--per-channel", "false",
        "--protect", '["head"]', "--name", "small",
    ]  # fmt: skip


def test_a_hostile_name_is_quoted_for_the_shell() -> None:
    assert shlex.split(command_line("x", "$(rm -rf ~)'\"", {}, {}))[4] == "$(rm -rf ~)'\""


def test_the_command_line_parser_reads_back_what_the_form_wrote() -> None:
    from tui.cli import _technique_parameters

    line = command_line("t", "v", {"samples": 512, "per_channel": True, "protect": ["a", "b"]}, {})
    read = _technique_parameters(shlex.split(line)[5:])
    assert read == {"samples": "512", "per_channel": "true", "protect": ["a", "b"]}


def test_the_help_of_a_technique_lists_its_parameters_without_loading_torch() -> None:
    script = (
        "import sys, tui.cli\n"
        "try: tui.cli.main(['apply', 'prune-structured', '--help'])\n"
        "except SystemExit as end: print(end.code, [name for name in ('torch', 'textual') if name in sys.modules])"
    )
    text = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert text.endswith("0 []\n")
    for words in ("--keep-macs X", "--scope layer|global|sensitivity", "--scan [true|false]", "--protect A,B"):
        assert words in text
    assert "Share of channels to remove" in text
    assert "(above 0 and below 1)" in " ".join(text.split())
    assert "(default: 8)" in text


def test_the_help_of_every_technique_can_be_shown() -> None:
    for info in technique_forms():
        text = technique_help([info.tag])
        assert text is not None
        for field in info.fields:
            assert f"--{field.name.replace('_', '-')} " in text
