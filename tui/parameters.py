"""Parameters as a user types them: checked against a `Field`, and written as the command line that says the same.

Pure functions, so the form, the tests and "copy the command" share one meaning. The engine checks again (and knows
more); this answers while the user is typing.
"""

import json
import shlex
from typing import Any

from engine.protocol import Field

from .figures import number


def parse(field: Field, text: str) -> Any:
    """The value that a text stands for. Empty stands for None where that is legal, else for the default.

    Raises ValueError with a sentence that says what the field takes.
    """
    text = text.strip()
    if not text:
        if field.optional or field.default is None:
            return None
        return field.default
    if field.kind == "integer":
        try:
            value: float = int(text)
        except ValueError:
            raise ValueError(f"A whole number{limits(field)}, not {text[:40]!r}.") from None
        return _within(field, value)
    if field.kind == "number":
        try:
            value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            raise ValueError(f"A number{limits(field)}, not {text[:40]!r}.") from None
        return _within(field, value)
    if field.kind == "choice" and text not in field.choices:
        raise ValueError(f"One of {', '.join(field.choices)}.")
    if field.kind == "boolean":
        return text.lower() in ("true", "yes", "1")
    if field.kind == "list":
        return [_word(part) for part in text.replace(",", " ").split()]
    return text


def written(field: Field, value: Any) -> str:
    """A value as the text that `parse` reads back."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return " ".join(number(part) if isinstance(part, float) else str(part) for part in value)
    return number(value) if isinstance(value, float) and abs(value) >= 1 else str(value)


def limits(field: Field) -> str:
    """The allowed range in words: " from 1 to 100", " above 0"; empty if there is none."""
    low = high = ""
    if field.minimum is not None:
        low = f" {'above' if field.exclusive_minimum else 'from'} {number(field.minimum)}"
    if field.maximum is not None:
        joint = "and below" if field.exclusive_maximum else "to"
        joint = joint if low else joint.replace("and ", "").replace("to", "up to")
        high = f" {joint} {number(field.maximum)}"
    return low + high


def hint(field: Field) -> str:
    """What stands beside a field: its description and its range."""
    allowed = limits(field).strip()
    described = field.description[:1].upper() + field.description[1:]
    parts = [described] if described else []
    if allowed:
        parts.append(f"({allowed})" if described else allowed[:1].upper() + allowed[1:])
    if field.optional and "empty:" not in described:
        parts.append(f"Empty: {field.empty}.")
    return " ".join(parts)


def command_line(
    technique: str, source: str, values: dict[str, Any], defaults: dict[str, Any], name: str | None = None
) -> str:
    """The `trimtab apply` line that does what a form would: only what differs from the defaults is written."""
    words = ["trimtab", "apply", technique, "--from", source]
    for key, value in values.items():
        if key in defaults and value == defaults[key]:
            continue
        if value is None:
            continue
        option = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, list | tuple):
            text = json.dumps(list(value))
        else:
            text = str(value)
        words += [option, text]
    if name:
        words += ["--name", name]
    return shlex.join(words)


def _within(field: Field, value: float) -> float:
    """The value, if it is in the field's range."""
    low, high = field.minimum, field.maximum
    above = low is None or (value > low if field.exclusive_minimum else value >= low)
    below = high is None or (value < high if field.exclusive_maximum else value <= high)
    if not (above and below):  # in this form "nan" is refused too
        raise ValueError(f"It must be{limits(field)}.")
    return value


def _word(part: str) -> Any:
    """A list's element: a number where it is one (a word that only Python takes for one, as nan, is a word)."""
    if not any(character.isdigit() for character in part):
        return part
    for kind in (int, float):
        try:
            return kind(part)
        except ValueError:
            continue
    return part
