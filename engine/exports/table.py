"""The comparison as a table: one row a variant, with the measurement that stands for it (`engine/session/ranking.py`).

Works on the plain data of `results.py`, so that the JSON and the tables cannot differ. CSV has one figure a column
and full digits, for machines; Markdown is for people, on a terminal too, and has aligned columns.
"""

import csv
import io
from collections.abc import Callable
from typing import Any

from ..safety import csv_cell, markdown_cell
from . import figures

NAMES_LISTED = 6
"""Variants named in one sentence before the others are counted."""

NAME_LIMIT = 60
"""Characters of a variant's name in the Markdown table."""

DISTURBED = "~"
"""Before a time that was taken while other processes worked."""

Entry = dict[str, Any]
"""One variant of `results()["variants"]`."""


def _at(*path: str) -> Callable[[Entry], Any]:
    """Reads a nested value; None as soon as something on the way is None."""

    def read(entry: Entry) -> Any:
        value: Any = entry
        for key in path:
            value = None if value is None else value.get(key)
        return value

    return read


CSV_COLUMNS: tuple[tuple[str, Callable[[Entry], Any]], ...] = (
    ("name", _at("name")),
    ("id", _at("id")),
    ("parent", _at("parent")),
    ("technique", _at("technique")),
    ("target", _at("target")),
    ("runtime", _at("runtime")),
    ("device", _at("device")),
    ("batch_size", _at("batch_size")),
    ("size_bytes", _at("size_bytes")),
    ("parameter_count", _at("parameter_count")),
    ("macs", _at("macs")),
    ("complexity", _at("complexity")),
    ("accuracy_kind", _at("accuracy", "kind")),
    ("accuracy", _at("accuracy", "value")),
    ("accuracy_drop", _at("accuracy", "drop")),
    ("accuracy_drop_low", _at("accuracy", "low")),
    ("accuracy_drop_high", _at("accuracy", "high")),
    ("accuracy_samples", _at("accuracy", "samples")),
    ("accuracy_verdict", _at("accuracy", "verdict")),
    ("p50_ms", _at("latency_ms", "p50")),
    ("p90_ms", _at("latency_ms", "p90")),
    ("p99_ms", _at("latency_ms", "p99")),
    ("throughput_per_s", _at("throughput_per_s")),
    ("speedup", _at("speedup", "ratio")),
    ("speedup_low", _at("speedup", "low")),
    ("speedup_high", _at("speedup", "high")),
    ("speedup_verdict", _at("speedup", "verdict")),
    ("speedup_against", _at("speedup", "against")),
    ("speedup_over_parent", _at("speedup_over_parent", "ratio")),
    ("speedup_over_parent_low", _at("speedup_over_parent", "low")),
    ("speedup_over_parent_high", _at("speedup_over_parent", "high")),
    ("speedup_over_parent_verdict", _at("speedup_over_parent", "verdict")),
    ("other_runtimes", lambda entry: " ".join(_other_runtimes(entry)) or None),
)
"""Column → where its value is."""


def as_csv(content: dict[str, Any]) -> str:
    """One row a variant, RFC 4180, safe to open in a spreadsheet."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([name for name, _ in CSV_COLUMNS])
    for entry in content["variants"]:
        writer.writerow([csv_cell(read(entry)) for _, read in CSV_COLUMNS])
    return buffer.getvalue()


MARKDOWN_COLUMNS: tuple[tuple[str, bool, Callable[[Entry], str]], ...] = (
    ("variant", False, lambda e: markdown_cell(e["name"], NAME_LIMIT)),
    ("runs on", False, lambda e: _runs_on(e)),
    ("batch", True, lambda e: markdown_cell(e["batch_size"])),
    ("speed-up (95 % CI)", False, lambda e: _speedup(e["speedup"])),
    ("over parent", False, lambda e: _over_parent(e)),
    ("p50 ms", True, lambda e: _p50(e)),
    ("p90 ms", True, lambda e: figures.milliseconds(_at("latency_ms", "p90")(e))),
    ("p99 ms", True, lambda e: figures.milliseconds(_at("latency_ms", "p99")(e))),
    ("per s", True, lambda e: figures.rate(e["throughput_per_s"])),
    ("size", True, lambda e: figures.size(e["size_bytes"])),
    ("parameters", True, lambda e: figures.count(e["parameter_count"])),
    ("MACs", True, lambda e: figures.count(e["macs"])),
    ("to deploy", False, lambda e: f"{e['complexity']} complexity"),
    ("accuracy", True, lambda e: figures.percent(_at("accuracy", "value")(e))),
    ("drop, points (95 % CI)", False, lambda e: _drop(e)),
    ("limit", False, lambda e: _at("accuracy", "verdict")(e) or figures.UNKNOWN),
)
"""Column, whether it is a number (right-aligned), and its cell, which is safe Markdown."""


def as_markdown(content: dict[str, Any], *, steps: bool) -> str:
    """What people read: with `steps` those that did not succeed, then the table."""
    parts = []
    if content.get("error"):
        parts.append(f"{markdown_cell(content['error'])}\n")
    # Steps that share the run's own fate need no line each.
    notable = [
        step
        for step in content["steps"]
        if steps and step["status"] != "succeeded" and step["reason"] != content.get("error")
    ]
    if notable:
        parts.append("".join(f"{_step_line(step)}\n" for step in notable))
    if content["variants"]:
        parts.append(heading(content) + "\n")
        parts.append(markdown_table(content["variants"]))
        parts += below(content["variants"])
        warned = [entry for entry in content["variants"] if entry["warning"]]
        lines = [f"- {markdown_cell(one['name'], NAME_LIMIT)}: {markdown_cell(one['warning'])}\n" for one in warned]
        if steps:
            noticed = [step for step in content["steps"] if step["notice"]]
            lines += [
                f"- {markdown_cell(one['name'], NAME_LIMIT)}: {markdown_cell(one['notice'])}\n" for one in noticed
            ]
        parts += ["".join(lines)] if lines else []
        others = elsewhere(content["variants"])
        parts += [others] if others else []
    else:
        parts.append("No variants yet.\n")
    return "\n".join(parts)


def _step_line(step: dict[str, Any]) -> str:
    return (
        f"- {markdown_cell(step['name'], NAME_LIMIT)}: {step['status']}. {markdown_cell(step['reason'] or '')}".rstrip()
    )


def heading(content: dict[str, Any]) -> str:
    """One line above the table: the model, the limit, and what the speed-ups are against."""
    model = markdown_cell(content["model"]["name"], NAME_LIMIT) if content["model"] else "model"
    limit = figures.points(content["accuracy_limit"])
    against = next((e["speedup"]["against"] for e in content["variants"] if e["speedup"]), None)
    text = f"{model} · accuracy limit {limit} points"
    if any(_at("accuracy", "kind")(entry) == "agreement" for entry in content["variants"]):
        text += " of agreement with the baseline (there are no labels)"
    return text + (f" · speed-ups against {markdown_cell(against)}" if against else "")


def markdown_table(entries: list[Entry]) -> str:
    """A table with aligned columns, so that it reads well on a terminal too."""
    header = [title for title, _, _ in MARKDOWN_COLUMNS]
    of_rows = {entry["id"]: entry["runtime"] for entry in entries}
    told = [entry | {"parent_runtime": of_rows.get(entry["parent"])} for entry in entries]
    rows = [[cell(entry) for _, _, cell in MARKDOWN_COLUMNS] for entry in told]
    widths = [max(3, *(len(row[i]) for row in [header, *rows])) for i in range(len(header))]
    numbers = [number for _, number, _ in MARKDOWN_COLUMNS]

    def line(cells: list[str]) -> str:
        padded = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numbers)]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if n else "-") for w, n in zip(widths, numbers)) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)]) + "\n"


def below(entries: list[Entry]) -> list[str]:
    """What the table alone does not say: paragraphs, none where there is nothing to say."""
    parts = []
    if any(entry["disturbed"] for entry in entries):
        parts.append(
            f"{DISTURBED} Other processes worked meanwhile: times of different rows say little about each other there, "
            "the speed-ups, measured in turn, do.\n"
        )
    undecided = [
        f"- {markdown_cell(entry['name'], NAME_LIMIT)}: {markdown_cell(why)}\n"
        for entry in entries
        for why in entry["undecided"]
    ]
    parts += ["".join(undecided)] if undecided else []
    chains = [line for entry in entries if (line := _chain(entry))]
    if not chains:
        return parts
    words = "Gains step by step, multiplied"
    if any("≈" in line for line in chains):
        words += " (≈: the two sides of that step were not measured in turn)"
    return [*parts, f"{words}:\n\n" + "".join(chains)]


def _chain(entry: Entry) -> str:
    """ "- int8: onnx 2.28× · int8 1.80× = 4.10×; measured as a whole 4.11×"; "" where there are no two steps."""
    gains = entry["gains"]
    if gains is None:
        return ""
    steps = " · ".join(
        f"{markdown_cell(step['name'], NAME_LIMIT)} {'' if step['measured'] else '≈'}{figures.times(step['ratio'])}"
        for step in gains["steps"]
    )
    whole = f"{'=' if gains['product']['measured'] else '≈'} {figures.times(gains['product']['ratio'])}"
    measured = figures.times(_at("speedup", "ratio")(entry))
    return f"- {markdown_cell(entry['name'], NAME_LIMIT)}: {steps} {whole}; measured as a whole {measured}\n"


def _p50(entry: Entry) -> str:
    return (DISTURBED if entry["disturbed"] else "") + figures.milliseconds(_at("latency_ms", "p50")(entry))


def _runs_on(entry: Entry) -> str:
    if entry["runtime"] is None:
        return figures.UNKNOWN
    return markdown_cell(f"{entry['runtime']} {entry['device']}")


def _speedup(ratio: dict[str, Any] | None) -> str:
    if ratio is None:
        return figures.UNKNOWN
    return f"{figures.times(ratio['ratio'])} ({ratio['low']:.2f}–{ratio['high']:.2f}) {ratio['verdict']}"


def _over_parent(entry: Entry) -> str:
    """The ratio; with the runtime of both sides, where the parent's own row is of another."""
    ratio, shown = entry["speedup_over_parent"], entry.get("parent_runtime")
    if ratio is None:
        return figures.UNKNOWN
    both = f", both {markdown_cell(entry['runtime'])}" if shown not in (None, entry["runtime"]) else ""
    return f"{figures.times(ratio['ratio'])} {ratio['verdict']}{both}"


def _other_runtimes(entry: Entry) -> list[str]:
    """Runtimes it was timed under beside that of its row."""
    return sorted({one["runtime"] for one in entry["measurements"]} - {entry["runtime"]})


def elsewhere(entries: list[Entry]) -> str:
    """A line on what was measured under other runtimes than the rows', and how to see it; "" where nothing was."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        for runtime in _other_runtimes(entry):
            found.setdefault(runtime, []).append(markdown_cell(entry["name"], NAME_LIMIT))
    lines = []
    for runtime, names in sorted(found.items()):
        more = f" and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
        lines.append(
            f"Also measured under {markdown_cell(runtime)}: {', '.join(names[:NAMES_LISTED])}{more} "
            f"(trimtab compare --runtime {markdown_cell(runtime)}).\n"
        )
    return "".join(lines)


def _drop(entry: Entry) -> str:
    accuracy = entry["accuracy"]
    if accuracy is None:
        return figures.UNKNOWN
    interval = f"{figures.points(accuracy['low'])} to {figures.points(accuracy['high'])}"
    word = "changed " if accuracy["kind"] == "agreement" else ""
    return f"{word}{figures.points(accuracy['drop'])} ({interval})"
