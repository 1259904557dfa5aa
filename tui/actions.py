"""The one registry of what a user can do: keys, footer, `?` help, command palette and greying-out come from it.

An action says when it is not available, and why: the reason is shown when one tries, in the help and in the palette.
What an action does stands in `tui/commands.py`, in a function of the action's id.
"""

import dataclasses
from collections.abc import Callable

from engine.protocol import Job, Running, Snapshot, Variant

from .comparison import baseline_of
from .heat import scan_of
from .loads import load_jobs


@dataclasses.dataclass(frozen=True)
class Situation:
    """What decides whether an action is available: the state of things and what the user has chosen."""

    snapshot: Snapshot
    link: str = "connected"
    variant: Variant | None = None
    """The variant under the cursor."""
    job: Job | None = None
    """The job under the cursor, or the one that runs."""


Reason = Callable[[Situation], str | None]
"""Why an action is not available now, as a sentence; None when it is."""


def always(situation: Situation) -> str | None:
    """Needs nothing."""
    return None


def needs_engine(situation: Situation) -> str | None:
    """Everything that asks the engine for something."""
    if situation.link == "connecting":
        return "The engine is starting; one moment."
    if situation.link == "lost":
        return "The connection to the engine is lost; it is being restored."
    return None


def needs_lost(situation: Situation) -> str | None:
    return None if situation.link == "lost" else "The engine is running."


def needs_model(situation: Situation) -> str | None:
    if reason := needs_engine(situation):
        return reason
    return None if situation.snapshot.model or situation.snapshot.variants else "Open a model first (o)."


def needs_variant(situation: Situation) -> str | None:
    if reason := needs_model(situation):
        return reason
    return None if situation.variant else "Choose a variant first: pane 1, arrow keys."


def needs_unfinished_job(situation: Situation) -> str | None:
    if reason := needs_engine(situation):
        return reason
    if situation.job is None:
        return "No job is running or waiting."
    if situation.job.is_done:
        return "This job has ended; there is nothing to cancel."
    if isinstance(situation.job.state, Running) and situation.job.state.cancelling:
        return "This job is being cancelled already."
    return None


def needs_job(situation: Situation) -> str | None:
    if reason := needs_engine(situation):
        return reason
    return None if situation.job else "No job has run yet."


def needs_comparison(situation: Situation) -> str | None:
    if reason := needs_model(situation):
        return reason
    return None if len(situation.snapshot.variants) > 1 else "There is only the baseline yet: apply a technique (t)."


def needs_leaf(situation: Situation) -> str | None:
    if reason := needs_variant(situation):
        return reason
    assert situation.variant is not None
    if situation.variant.parent is None:
        return "The baseline cannot be deleted: every figure is measured against it."
    if any(one.parent == situation.variant.id for one in situation.snapshot.variants):
        return "Other variants were made from this one: delete those first."
    if any(job.variant == situation.variant.id and not job.is_done for job in situation.snapshot.jobs):
        return "A job is working on this variant: cancel it first (x)."
    return None


def needs_derived(situation: Situation) -> str | None:
    if reason := needs_variant(situation):
        return reason
    if situation.variant is not None and situation.variant.parent is None:
        return "The baseline is the model itself: there is no command that makes it."
    return None


def needs_scannable(situation: Situation) -> str | None:
    if reason := needs_variant(situation):
        return reason
    variant, model = situation.variant, situation.snapshot.model
    if variant is not None and scan_of(situation.snapshot, variant) is None:
        if variant.format != "pytorch":
            return "Layers are made narrower in PyTorch: choose the variant that this one was exported from."
        if model is not None and "train_data" not in model.offers:
            return "The scan needs training data: add train_data() to the model file."
    return None


def needs_load_test(situation: Situation) -> str | None:
    if reason := needs_model(situation):
        return reason
    if shown_load_test(situation) is None:
        return "No load test of this variant has run yet: l starts one."
    return None


def shown_load_test(situation: Situation) -> Job | None:
    """The load test that runs, else the newest of the chosen variant, else the newest of all."""
    jobs = load_jobs(situation.snapshot)
    running = [job for job in jobs if isinstance(job.state, Running)]
    of_variant = [job for job in jobs if situation.variant is not None and job.variant == situation.variant.id]
    return next(iter([*running, *of_variant, *jobs]), None)


def needs_baseline(situation: Situation) -> str | None:
    if reason := needs_model(situation):
        return reason
    return None if baseline_of(situation.snapshot) else "The model is still being opened."


@dataclasses.dataclass(frozen=True)
class Action:
    """One thing a user can do."""

    id: str
    key: str
    """Textual's name of the key; several with commas."""
    label: str
    """One or two words for the footer."""
    description: str
    """A sentence for the help and the palette."""
    group: str
    reason: Reason = always
    dangerous: bool = False
    """It loses something; it asks before it does."""
    footer: bool = True
    """Shown in the footer while there is room."""

    @property
    def shown_key(self) -> str:
        """The key as a user reads it on the keyboard."""
        first = self.key.split(",")[0]
        return SHOWN_KEYS.get(first, first)


SHOWN_KEYS = {
    "enter": "⏎",
    "escape": "esc",
    "question_mark": "?",
    "slash": "/",
    "plus": "+",
    "minus": "-",
    "greater_than_sign": ">",
    "less_than_sign": "<",
    "ctrl+p": "^p",
    "ctrl+l": "^l",
}
"""Textual's names of keys → what stands on the keyboard."""

GROUPS = ("Model", "Variant", "Job", "View", "Session")
"""The sections of the help, in order."""

ACTIONS = (
    Action(
        "open_model", "o", "open", "Open a model: a Python file, an .onnx, or a trusted .pt.", "Model", needs_engine
    ),
    Action("apply_technique", "t", "technique", "Apply a technique to the chosen variant.", "Variant", needs_variant),
    Action(
        "measure", "m", "measure", "Measure latency and accuracy of the chosen variant again.", "Variant", needs_variant
    ),
    Action(
        "compare", "c", "compare", "Compare all variants, and two of them side by side.", "Variant", needs_comparison
    ),
    Action(
        "explain",
        "w",
        "why?",
        "Say why it is, or is not, faster than its parent; of the baseline: where time goes.",
        "Variant",
        needs_variant,
        footer=False,
    ),
    Action(
        "sensitivity",
        "h",
        "layers",
        "Show how much accuracy each layer costs when made narrower, and prune by it.",
        "Variant",
        needs_scannable,
        footer=False,
    ),
    Action(
        "load_test",
        "l",
        "load test",
        "Load-test the chosen variant: throughput and tail latency live, with knobs to turn.",
        "Variant",
        needs_variant,
    ),
    Action(
        "show_load_test",
        "v",
        "load view",
        "Show the load test that runs, or the newest one of the chosen variant.",
        "Variant",
        needs_load_test,
        footer=False,
    ),
    Action(
        "show_details",
        "enter",
        "details",
        "Show the chosen variant whole: lineage, changes, figures, recipe, log.",
        "Variant",
        needs_variant,
    ),
    Action(
        "export", "e", "export", "Write variants, figures, report and recipe to a folder.", "Variant", needs_baseline
    ),
    Action(
        "copy",
        "y",
        "copy",
        "Copy the command line or the recipe that makes the chosen variant.",
        "Variant",
        needs_derived,
    ),
    Action(
        "delete_variant",
        "d",
        "delete",
        "Delete the chosen variant with its files and figures.",
        "Variant",
        needs_leaf,
        dangerous=True,
    ),
    Action(
        "cancel_job",
        "x",
        "cancel",
        "Cancel the chosen job, or the one that runs.",
        "Job",
        needs_unfinished_job,
        dangerous=True,
    ),
    Action(
        "show_log",
        "L",
        "log",
        "Show the chosen job: curves of its training, whole log.",
        "Job",
        needs_job,
        footer=False,
    ),
    Action(
        "change_options",
        "a",
        "options",
        "Change the accuracy limit, batch sizes, runtimes, target and device.",
        "Session",
        needs_engine,
    ),
    Action("restart", "r", "restart", "Start the engine again.", "Session", needs_lost, footer=False),
    Action("next_batch_size", "b", "batch", "Compare at the next batch size.", "View", needs_model),
    Action(
        "next_sort",
        "s",
        "sort",
        "Order the variants by descent, speed, size or drop.",
        "View",
        needs_model,
        footer=False,
    ),
    Action(
        "filter",
        "slash",
        "filter",
        "Show only variants whose name or technique matches.",
        "View",
        needs_model,
        footer=False,
    ),
    Action("pane_1", "1", "variants", "Go to the variants; again: let them fill the screen.", "View", footer=False),
    Action("pane_2", "2", "jobs", "Go to the jobs; again: let them fill the screen.", "View", footer=False),
    Action("pane_3", "3", "hardware", "Go to the hardware; again: let it fill the screen.", "View", footer=False),
    Action("pane_4", "4", "log", "Go to the log; again: let it fill the screen.", "View", footer=False),
    Action(
        "next_theme", "T", "theme", "Switch between dark, light and the terminal's own colours.", "View", footer=False
    ),
    Action("show_help", "question_mark", "help", "Show every key, and why an action is not available.", "Session"),
    Action("open_palette", "ctrl+p", "palette", "Find any action by its name.", "Session", footer=False),
    Action("quit", "q,ctrl+c", "quit", "Leave the dashboard; a running job may go on without it.", "Session"),
)
"""In the order of the footer and the palette."""

FOOTER_ORDER = (
    "apply_technique",
    "show_details",
    "show_help",
    "quit",
    "compare",
    "measure",
    "cancel_job",
    "export",
    "load_test",
    "open_model",
    "next_batch_size",
    "change_options",
    "copy",
    "delete_variant",
)
"""Which actions the footer keeps when it is narrow; the first are kept longest."""


def action_named(id: str) -> Action:
    """The action with this id. Raises KeyError for an unknown one."""
    return _BY_ID[id]


_BY_ID = {action.id: action for action in ACTIONS}
