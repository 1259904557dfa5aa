"""The registry of actions is complete, unambiguous, and says why something is not available."""

import inspect

import msgspec
import pytest
import scenes

from tui import commands
from tui.actions import ACTIONS, FOOTER_ORDER, GROUPS, Situation, action_named


def situation(**changes: object) -> Situation:
    snapshot = scenes.work()
    known = {"snapshot": snapshot, "variant": snapshot.variants[2], "job": snapshot.jobs[4]} | changes
    return Situation(**known)  # type: ignore[arg-type]


def reason(id: str, **changes: object) -> str | None:
    return action_named(id).reason(situation(**changes))


def test_every_action_has_a_function_a_group_and_a_key_of_its_own() -> None:
    keys = [key for action in ACTIONS for key in action.key.split(",")]
    assert len(keys) == len(set(keys))
    for action in ACTIONS:
        assert inspect.iscoroutinefunction(getattr(commands, action.id)), action.id
        assert action.group in GROUPS
        assert action.description.endswith(".")
    assert set(FOOTER_ORDER) == {action.id for action in ACTIONS if action.footer}


def test_in_the_middle_of_work_everything_is_available_but_restarting_and_what_was_never_run() -> None:
    changes = {"variant": scenes.VARIANTS[4]}
    unavailable = [action.id for action in ACTIONS if action.reason(situation(**changes)) is not None]
    assert unavailable == ["show_load_test", "restart"]


@pytest.mark.parametrize(
    ("id", "changes", "word"),
    [
        ("apply_technique", {"link": "lost"}, "connection"),
        ("open_model", {"link": "connecting"}, "starting"),
        ("apply_technique", {"snapshot": scenes.fresh(), "variant": None}, "Open a model"),
        ("measure", {"variant": None}, "Choose a variant"),
        ("delete_variant", {"variant": scenes.VARIANTS[0]}, "baseline"),
        ("delete_variant", {"variant": scenes.VARIANTS[1]}, "Other variants"),
        ("delete_variant", {}, "job is working"),
        ("copy", {"variant": scenes.VARIANTS[0]}, "model itself"),
        ("sensitivity", {"variant": scenes.VARIANTS[2]}, "in PyTorch"),
        ("cancel_job", {"job": scenes.JOBS[1]}, "has ended"),
        ("cancel_job", {"job": None}, "No job"),
        ("show_log", {"job": None}, "No job"),
        ("restart", {}, "is running"),
    ],
)
def test_an_action_that_is_not_available_says_why(id: str, changes: dict, word: str) -> None:  # type: ignore[type-arg]
    found = reason(id, **changes)
    assert found is not None
    assert word in found
    assert found.endswith(".") or found.endswith(").")


def test_a_job_that_is_being_cancelled_cannot_be_cancelled_again() -> None:
    job = scenes.JOBS[4]
    job = msgspec.structs.replace(job, state=msgspec.structs.replace(job.state, cancelling=True))
    assert "already" in (reason("cancel_job", job=job) or "")


def test_what_loses_something_is_marked_dangerous() -> None:
    assert {action.id for action in ACTIONS if action.dangerous} == {"delete_variant", "cancel_job"}
