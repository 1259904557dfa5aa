"""What a slow client is sent: states and results always, in order; telemetry and log lines as far as there is room."""

import asyncio

from engine.client import fold
from engine.protocol import (
    FRAME_HEADER,
    Done,
    EngineEvent,
    Hardware,
    Job,
    JobChanged,
    JobLogged,
    LayerInfo,
    MetricRecorded,
    ModelInfo,
    ModelSource,
    Processor,
    Queued,
    Reply,
    Running,
    Snapshot,
    Succeeded,
    TelemetrySample,
    TelemetrySampled,
    Text,
    decode_engine_message,
    encode_frame,
)
from engine.server import outgoing
from engine.server.outgoing import Outgoing, snapshot_frame

PROCESSOR = Processor(name="p", features=(), physical_cores=1, logical_cores=1, memory_bytes=1)


def snapshot(seq: int = 0, **facts) -> Snapshot:
    from engine.protocol import SessionOptions

    return Snapshot(
        seq=seq,
        session="/s",
        hardware=Hardware(hostname="h", processor=PROCESSOR),
        options=SessionOptions(accuracy_limit=0.02),
        **facts,
    )


def job(id: str, state) -> Job:
    return Job(id=id, kind="k", title="t", created=0.0, state=state)


def running(id: str, done: float) -> Job:
    return job(id, Running(started=1.0, done=done))


def sample(seq: int) -> TelemetrySampled:
    return TelemetrySampled(seq=seq, sample=TelemetrySample(time=float(seq), cpu=0.5))


def offer(queue: Outgoing, *events: EngineEvent) -> None:
    for event in events:
        queue.put_event(event, encode_frame(event))


def taken(queue: Outgoing) -> list:
    data, messages = asyncio.run(asyncio.wait_for(queue.take(), 5)), []
    while data:
        (length,) = FRAME_HEADER.unpack(data[: FRAME_HEADER.size])
        messages.append(decode_engine_message(data[FRAME_HEADER.size :][:length]))
        data = data[FRAME_HEADER.size + length :]
    return messages


def test_of_a_running_job_only_the_newest_change_is_sent_and_order_is_kept():
    queue = Outgoing(snapshot)
    offer(
        queue,
        JobChanged(seq=1, job=job("a", Queued())),
        JobChanged(seq=2, job=running("a", 1)),
        JobChanged(seq=3, job=running("b", 1)),
        JobChanged(seq=4, job=running("a", 2)),
        JobChanged(seq=5, job=running("a", 3)),
    )
    messages = taken(queue)
    assert [message.seq for message in messages] == [1, 3, 5]
    assert messages[-1].job.state.done == 3


def test_the_end_of_a_job_is_never_dropped():
    queue = Outgoing(snapshot)
    done = Succeeded(started=1.0, finished=2.0)
    offer(queue, JobChanged(seq=1, job=running("a", 1)), JobChanged(seq=2, job=job("a", done)))
    offer(queue, *(sample(seq) for seq in range(3, 2000)))
    states = [message for message in taken(queue) if isinstance(message, JobChanged)]
    assert [message.job.state for message in states] == [done]


def test_telemetry_log_lines_and_metrics_give_way_oldest_first():
    queue = Outgoing(snapshot)
    for seq in range(0, 3000, 3):
        offer(
            queue,
            sample(seq),
            JobLogged(seq=seq + 1, job="a", lines=("x",)),
            MetricRecorded(seq=seq + 2, job="a", name="loss", value=1.0, step=1, time=1.0),
        )
    messages = taken(queue)
    assert len(messages) == outgoing.MAX_PASSING
    assert [message.seq for message in messages] == list(range(3000 - outgoing.MAX_PASSING, 3000))


def test_when_even_states_are_too_many_a_snapshot_of_that_moment_replaces_them():
    moment = {"seq": 0}
    queue = Outgoing(lambda: snapshot(moment["seq"]))
    offer(queue, *(JobChanged(seq=seq, job=job(f"job {seq}", Queued())) for seq in range(3000)))
    moment["seq"] = 5000
    offer(queue, JobChanged(seq=5000, job=job("last", Queued())))
    assert taken(queue) == [snapshot(5000)]
    assert queue.resyncs == 1
    offer(queue, JobChanged(seq=5001, job=job("next", Queued())))
    assert [message.seq for message in taken(queue)] == [5001]


def test_the_queue_is_bounded_in_bytes_too():
    queue = Outgoing(snapshot)
    heavy = job("a", Queued(waiting_for="x" * 1_000_000))
    offer(queue, *(JobChanged(seq=seq, job=heavy) for seq in range(20)))
    assert queue.resyncs >= 1


def test_replies_survive_a_resync_and_follow_the_events_before_them():
    queue = Outgoing(snapshot)
    offer(queue, JobChanged(seq=1, job=job("a", Queued())))
    queue.put_reply(Reply(request=7, result=Done()))
    assert [type(message) for message in taken(queue)] == [JobChanged, Reply]
    queue.put_reply(Reply(request=8, result=Done()))
    queue.resync()
    assert [type(message) for message in taken(queue)] == [Snapshot, Reply]


def test_a_result_too_large_to_send_becomes_an_error_and_not_a_broken_connection():
    queue = Outgoing(snapshot)
    queue.put_reply(Reply(request=1, result=Text(text="x" * (17 * 1024 * 1024))))
    (reply,) = taken(queue)
    assert reply.result is None
    assert "too large" in reply.error


def test_a_snapshot_over_the_limit_leaves_out_what_can_be_asked_for_later():
    layers = tuple(LayerInfo(name="x" * 1000, type="Linear") for _ in range(9000))
    source = ModelSource(path="/m", kind="python", sha256="0")
    model = ModelInfo(name="m", source=source, inputs=(), outputs=(), offers=(), labelled=False, layers=layers)
    samples = tuple(TelemetrySample(time=1.0, cpu=0.5, cores=(0.5,) * 256) for _ in range(4000))
    frame = snapshot_frame(snapshot(model=model, telemetry=samples))
    sent = decode_engine_message(frame[FRAME_HEADER.size :])
    assert isinstance(sent, Snapshot)
    assert sent.model == model
    assert sent.telemetry == ()


def test_folding_the_thinned_events_gives_the_same_jobs_as_folding_all():
    events = [JobChanged(seq=seq, job=running(f"job {seq % 7}", float(seq))) for seq in range(500)]
    queue = Outgoing(snapshot)
    offer(queue, *events)
    whole = thinned = snapshot()
    for event in events:
        whole = fold(whole, event)
    for event in taken(queue):
        thinned = fold(thinned, event)
    assert {one.id: one for one in whole.jobs} == {one.id: one for one in thinned.jobs}
    assert whole.seq == thinned.seq


def test_what_nobody_waits_for_goes_with_what_somebody_waits_for(monkeypatch):
    monkeypatch.setattr(outgoing, "BUNDLE_SECONDS", 60.0)

    async def scene() -> list[bool]:
        queue, done = Outgoing(snapshot), []
        offer(queue, JobChanged(seq=1, job=running("a", 1)))
        await queue.take()  # that it runs is news
        for hurried in (sample(9), JobChanged(seq=9, job=job("a", Succeeded(started=1.0, finished=2.0)))):
            offer(
                queue,
                JobChanged(seq=2, job=running("a", 2)),
                MetricRecorded(seq=3, job="a", name="loss", value=1.0, step=1, time=1.0),
                JobLogged(seq=4, job="a", lines=("x",)),
            )
            taking = asyncio.create_task(queue.take())
            await asyncio.sleep(0.05)
            done.append(taking.done())
            offer(queue, hurried)
            data = await asyncio.wait_for(taking, 5)
            done.append(b"job-logged" in data and b"metric-recorded" in data)
        return done

    assert asyncio.run(scene()) == [False, True, False, True]


def test_with_nothing_else_to_send_progress_is_held_back_for_a_moment_only(monkeypatch):
    monkeypatch.setattr(outgoing, "BUNDLE_SECONDS", 0.05)
    queue = Outgoing(snapshot)
    offer(queue, JobLogged(seq=1, job="a", lines=("x",)))
    assert [message.seq for message in taken(queue)] == [1]
