"""What one can do on the load-test screen: keys, footer, `?` help and palette there come from this list.

Written with the same `Action` as the main screen's, so help and palette treat both alike; what an action does is a
method of `screens/load_test.py` of the action's id.
"""

from engine.protocol import Running

from .actions import Action, Situation, needs_engine
from .loads import found_by, is_load_test

GROUP = "Load test"


def needs_running_load(situation: Situation) -> str | None:
    """For what reaches into a test that runs."""
    if reason := needs_engine(situation):
        return reason
    job = situation.job
    if job is None or not is_load_test(job):
        return "The load test has not started yet."
    if job.is_done:
        return "The load test has ended; l starts another."
    return None if isinstance(job.state, Running) else "The load test waits for its turn; x cancels it."


def needs_unfinished_load(situation: Situation) -> str | None:
    if reason := needs_engine(situation):
        return reason
    job = situation.job
    return "The load test has ended already." if job is None or job.is_done else None


def needs_search(situation: Situation) -> str | None:
    if situation.job is None:
        return "The load test has not started yet."
    found = found_by(situation.snapshot, situation.job.id)
    if found.single is None and (found.search is not None or found.tests):
        return None
    return "Only searches and sweeps have several tests to set side by side."


def needs_job(situation: Situation) -> str | None:
    return None if situation.job is not None else "The load test has not started yet."


def _turn(id: str, key: str, label: str, description: str) -> Action:
    return Action(id, key, label, description, GROUP, needs_running_load, footer=False)


LOAD_ACTIONS = (
    _turn("rate_up", "plus,equals_sign", "+10 %", "Ten percent more requests a second, or more callers."),
    _turn("rate_down", "minus", "-10 %", "Ten percent fewer."),
    _turn("rate_double", "greater_than_sign,shift+up", "x2", "Twice the rate, or twice the callers."),
    _turn("rate_halve", "less_than_sign,shift+down", "/2", "Half the rate, or half the callers."),
    _turn("batch_double", "B", "batch x2", "Twice the maximum batch size."),
    _turn("batch_halve", "b", "batch /2", "Half the maximum batch size."),
    _turn("wait_double", "W", "wait x2", "Let the oldest request wait twice as long for company."),
    _turn("wait_halve", "w", "wait /2", "Let it wait half as long; in the end not at all."),
    _turn("instances_up", "I", "one more copy", "One more copy of the model side by side."),
    _turn("instances_down", "i", "one copy less", "One copy less."),
    _turn("pause_load", "space", "pause", "Send nothing for a while, or go on."),
    Action("stop_load", "s", "stop & keep", "End it now and keep what was measured.", GROUP, needs_running_load),
    Action(
        "cancel_load",
        "x",
        "cancel",
        "Cancel it; what a search has finished is kept.",
        GROUP,
        needs_unfinished_load,
        dangerous=True,
    ),
    Action("compare_load", "o", "overlay", "Lay another run over this one, and set their figures side by side.", GROUP),
    Action("next_chart", "tab", "charts", "Bring up the charts that there was no room for.", GROUP),
    Action("zoom_time", "z", "zoom", "Show the whole test, its last minute, or its last quarter of a minute.", GROUP),
    Action(
        "show_front", "f", "front", "Of a search: its tests as points, or all of them over time.", GROUP, needs_search
    ),
    Action("load_again", "l", "again", "Start another one with these settings as they stand now.", GROUP, needs_engine),
    Action("show_load_log", "L", "log", "Read the whole log of its job.", GROUP, needs_job, footer=False),
    Action("show_load_help", "question_mark", "help", "Show every key of this screen.", GROUP),
    Action("leave_load", "escape,q", "back", "Leave the screen; the load test goes on.", GROUP),
)
"""In the order of the footer, the help and the palette."""

LOAD_FOOTER = (
    "leave_load",
    "stop_load",
    "cancel_load",
    "compare_load",
    "show_load_help",
    "next_chart",
    "zoom_time",
    "load_again",
    "show_front",
)
"""Which the footer keeps when it is narrow; the knobs have a line of their own above it."""
