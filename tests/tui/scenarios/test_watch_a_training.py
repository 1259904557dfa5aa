"""Loss and accuracy while a job trains: in the jobs pane, on the job's own screen, after re-attaching, afterwards."""

import msgspec
import scenes
from driver import dashboard

from engine.protocol import JobChanged, MetricHistory, MetricRecorded, ReadMetrics, Succeeded


def point(name: str, value: float, step: int) -> MetricRecorded:
    return MetricRecorded(seq=0, job="j6", name=name, value=value, step=step, time=scenes.NOW)


async def test_the_jobs_pane_and_the_tree_say_how_it_goes_at_every_size() -> None:
    for size in ((80, 24), (100, 30), (200, 50)):
        async with dashboard(scenes.training(), size=size) as seen:
            await seen.sees("3/5  loss 0.312", "91.2 %", "epoch 3/5" if size[0] > 80 else "3/5")


async def test_the_jobs_own_screen_draws_both_curves_with_epochs_and_the_limit() -> None:
    for size in ((80, 24), (100, 30), (200, 50)):
        async with dashboard(scenes.training(), size=size) as seen:
            await seen.press("L")
            await seen.sees("loss", "accuracy", "limit 91.41 %", "before 92.41 %", "epochs 0", "╌")
            assert any("\u2801" <= character <= "\u28ff" for character in seen.text)
            await seen.press("escape")
            await seen.sees("1 Variants")


async def test_what_the_accuracy_before_was_judged_on_is_said_beside_the_limit() -> None:
    state = scenes.training()
    assert state.model is not None
    model = msgspec.structs.replace(state.model, offers=(*state.model.offers, "validation_data"))
    for width, known in (
        (80, "data it likely knows"),
        (200, "data it likely knows"),
        (112, "that it has probably seen"),
    ):
        async with dashboard(state, size=(width, 24)) as seen:
            await seen.press("L")
            await seen.sees("before 92.41 %", known)
    async with dashboard(msgspec.structs.replace(state, model=model), size=(80, 24)) as seen:
        await seen.press("L")
        await seen.sees("before 92.41 %, on validation_data()")


async def test_a_new_point_appears_live() -> None:
    async with dashboard(scenes.training()) as seen:
        await seen.press("L")
        await seen.sees("accuracy  91.21 %")
        before = seen.text
        for step in range(521, 600):
            seen.engine.push(point("loss", 0.2, step))
        seen.engine.push(point("accuracy", 0.9188, 600))
        await seen.sees("accuracy  91.88 %", "✓", "0.200")
        assert seen.text != before


async def test_history_and_events_together_are_one_curve() -> None:
    async with dashboard(scenes.training()) as seen:
        seen.engine.push(point("loss", 0.29, 525))
        await seen.until(lambda: (c := seen.app.connection.curves.get("j6")) and c.complete, "reading the history")
        curve = seen.app.connection.curves["j6"].by_name["loss"]
        await seen.until(lambda: curve.last == 0.29, "the event")
        assert curve.buckets[0].step == 5
        assert curve.buckets[-1].step == 525


async def test_a_snapshot_among_the_events_has_the_history_read_again() -> None:
    async with dashboard(scenes.training()) as seen:
        curves = seen.app.connection.curves
        await seen.until(lambda: "j6" in curves and curves["j6"].complete, "reading the history")
        asked = sum(isinstance(one, ReadMetrics) for one in seen.engine.asked)
        seen.app.connection._follow_curves(seen.engine.state)
        seen.app.paint()
        await seen.until(
            lambda: sum(isinstance(one, ReadMetrics) for one in seen.engine.asked) > asked, "reading again"
        )


async def test_a_long_history_is_read_piece_by_piece() -> None:
    from tui import connection

    points = scenes.curve_points()
    pieces: list[int] = []

    def piece(command: ReadMetrics) -> MetricHistory:
        pieces.append(command.offset)
        return MetricHistory(points=points[command.offset : command.offset + 50])

    before = connection.METRIC_POINTS
    connection.METRIC_POINTS = 50
    try:
        async with dashboard(scenes.training(), {ReadMetrics: piece}) as seen:
            curves = seen.app.connection.curves
            await seen.until(lambda: "j6" in curves and "accuracy" in curves["j6"].by_name, "all pieces")
            assert pieces == list(range(0, len(points), 50))
    finally:
        connection.METRIC_POINTS = before


async def test_a_job_that_has_ended_shows_its_curves_from_the_history() -> None:
    scene = scenes.training()
    done = msgspec.structs.replace(
        scenes.TRAINING_JOB, state=Succeeded(started=scenes.NOW - 190, finished=scenes.NOW, summary="narrower")
    )
    async with dashboard(msgspec.structs.replace(scene, jobs=(*scene.jobs[:-1], done))) as seen:
        await seen.press("2", "home", "enter")
        await seen.sees("accuracy  91.21 %", "epochs 0", "lowest 0.24")
        assert "↓" not in seen.text.splitlines()[1], "what has ended goes nowhere"


async def test_when_it_ends_what_was_dropped_on_the_way_is_read() -> None:
    async with dashboard(scenes.training()) as seen:
        curves = seen.app.connection.curves
        await seen.until(lambda: "j6" in curves and curves["j6"].complete, "reading the history")
        await seen.press("L")
        asked = sum(isinstance(one, ReadMetrics) for one in seen.engine.asked)
        done = msgspec.structs.replace(
            scenes.TRAINING_JOB, state=Succeeded(started=scenes.NOW - 190, finished=scenes.NOW)
        )
        seen.engine.push(JobChanged(seq=0, job=done))
        await seen.until(
            lambda: sum(isinstance(one, ReadMetrics) for one in seen.engine.asked) > asked, "reading again"
        )


async def test_curves_and_log_share_the_screen_as_the_user_likes() -> None:
    async with dashboard(scenes.training()) as seen:
        await seen.press("L")
        await seen.sees("loss", "calibrating on 256 samples")
        await seen.press("v")
        await seen.sees_not("calibrating on 256 samples")
        await seen.press("v")
        await seen.sees("calibrating on 256 samples")
        await seen.sees_not("epochs 0")
        await seen.press("v")
        await seen.sees("epochs 0", "calibrating on 256 samples")


async def test_a_job_without_curves_has_its_log_alone() -> None:
    async with dashboard() as seen:
        await seen.press("L")
        await seen.sees("calibrating on 256 samples", "esc back")
        assert "v curves" not in seen.text
