"""A job is seen from start to end: in the tree, in the list, in its log; it can be cancelled."""

import msgspec
import scenes
from driver import dashboard

from engine.protocol import CancelJob, JobChanged, JobLogged, ReadLog, Text


def changed(**state: object) -> JobChanged:
    job = scenes.JOBS[4]
    return JobChanged(seq=0, job=msgspec.structs.replace(job, state=msgspec.structs.replace(job.state, **state)))


async def test_progress_moves() -> None:
    async with dashboard() as seen:
        await seen.sees("42 %")
        seen.engine.push(changed(done=48, message="calibrating batch 48 of 64"))
        await seen.sees("75 %", "calibrating batch 48 of 64", "19 s left")


async def test_its_end_and_its_reason_are_told() -> None:
    async with dashboard() as seen:
        job = scenes.JOBS[4]
        failed = scenes.Failed(started=scenes.NOW - 57, finished=scenes.NOW, reason="The worker ran out of memory.")
        seen.engine.push(JobChanged(seq=0, job=msgspec.structs.replace(job, state=failed)))
        await seen.sees("✗ quantize-static on onnx: The worker ran out of memory.")


async def test_the_log_of_the_running_job_grows_by_itself() -> None:
    lines = ["first line\n"]

    def read(command: ReadLog) -> Text:
        text = "".join(lines)
        return Text(text=text[command.offset :], next_offset=len(text))

    async with dashboard(answers={ReadLog: read}) as seen:
        seen.app.clock = iter(range(int(scenes.NOW), int(scenes.NOW) + 10**6)).__next__
        await seen.sees("4 Log", "first line")
        lines.append("second line\n")
        seen.engine.push(JobLogged(seq=0, job="j4", lines=("second line",)))
        await seen.sees("second line")


async def test_choosing_another_job_shows_its_log() -> None:
    def read(command: ReadLog) -> Text:
        text = f"the log of {command.job}\n"
        return Text(text=text[command.offset :], next_offset=len(text))

    async with dashboard(answers={ReadLog: read}) as seen:
        await seen.sees("the log of j4")
        await seen.press("2", "down")
        await seen.sees("the log of j5")
        await seen.press("enter")
        await seen.sees("waiting for cpu", "esc back")
        await seen.press("escape")
        await seen.sees("1 Variants")


async def test_reading_back_in_the_log_stops_following_until_its_end() -> None:
    text = "".join(f"line {number}\n" for number in range(200))

    def read(command: ReadLog) -> Text:
        return Text(text=text[command.offset :], next_offset=len(text))

    async with dashboard(answers={ReadLog: read}) as seen:
        await seen.sees("line 199")
        await seen.press("4", "home")
        await seen.sees("line 0 ", "end foll")
        await seen.press("end")
        await seen.sees("line 199")
        await seen.sees_not("end foll")


async def test_cancelling_asks_first() -> None:
    async with dashboard() as seen:
        await seen.press("x")
        await seen.sees("Cancel this job?", "quantize-static on onnx")
        await seen.press("escape")
        assert not any(isinstance(one, CancelJob) for one in seen.engine.asked)
        await seen.press("x")
        await seen.sees("Cancel this job?")
        await seen.press("x")
        assert (await seen.asked(CancelJob)).job == "j4"
