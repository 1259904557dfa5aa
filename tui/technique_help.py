"""`trimtab apply TECHNIQUE --help`: the technique's parameters, from the form that the dashboard draws, too."""

import textwrap

from engine.client import technique_forms
from engine.protocol import Field

from .parameters import hint, written

COLUMN = 28
"""Where descriptions begin."""

WIDTH = 110


def technique_help(words: list[str]) -> str | None:
    """The help on the technique among these words; None where they name none."""
    info = next((info for info in technique_forms() if info.tag in words), None)
    if info is None:
        return None
    parts = [f"usage: trimtab apply {info.tag} [--from VARIANT] [--name NAME] [--target TARGET] [--PARAMETER VALUE …]"]
    about = f"{info.title}. {info.summary}" + (f" Expected: {info.expectation}." if info.expectation else "")
    parts += ["", *textwrap.wrap(about, WIDTH), "", "parameters:"]
    for field in info.fields:
        parts += _lines(field)
    parts += ["", "What every technique takes: trimtab apply --help."]
    return "\n".join(parts)


def _lines(field: Field) -> list[str]:
    """`--name VALUE`, and what it means: beside it, or below where it is long."""
    option = f"  --{field.name.replace('_', '-')} {_value(field)}"
    default = written(field, field.default)
    text = hint(field) + (f" (default: {default})" if default else "")
    margin = " " * COLUMN
    lines = textwrap.wrap(text, WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False) or [""]
    if len(option) > COLUMN - 2:
        return [option, *lines]
    return [option.ljust(COLUMN) + lines[0].lstrip(), *lines[1:]]


def _value(field: Field) -> str:
    """What stands for its value in a usage line."""
    if field.kind == "choice":
        return "|".join(field.choices)
    return {"integer": "N", "number": "X", "boolean": "[true|false]", "text": "TEXT", "list": "A,B"}[field.kind]
