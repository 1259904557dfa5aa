"""What a worker made becomes the session's whole or not at all."""

import asyncio
import threading
from pathlib import Path

import pytest
from engines import becomes
from quick_jobs import PROCESSOR

from engine.protocol import (
    Changed,
    Finished,
    InspectModel,
    Job,
    Queued,
    RunTechnique,
    VariantAdded,
    VariantDraft,
)
from engine.session import Session, SessionError
from engine.session.adoption import adopt


@pytest.fixture
def opened(tmp_path: Path):
    session = Session.open(tmp_path / "m.trimtab")
    yield session
    session.close()


def job_in(session: Session) -> Job:
    job = Job(id=session.new_id(), kind="k", title="t", created=0.0, state=Queued())
    session.put_job(job)
    return job


def draft(session: Session, job: Job, name: str, label: str | None = None, **facts) -> VariantDraft:
    (session.work_directory(job.id) / name).write_bytes(name.encode() * 100)
    return VariantDraft(label=label, format="onnx", files=(name,), deployed_files=(name,), **facts)


async def adopt_into(session: Session, job: Job, task, finished: Finished, name: str | None = None):
    events: list = []
    state = await adopt(session, job, task, name, finished, PROCESSOR, 1.0, events.append)
    return state, events


async def baseline(session: Session) -> str:
    job = job_in(session)
    state, _ = await adopt_into(session, job, InspectModel(), Finished(variants=(draft(session, job, "model.onnx"),)))
    return state.variants[0]


async def test_a_front_of_variants_gets_the_steps_name_and_labels_and_its_lineage(opened):
    root = await baseline(opened)
    task = RunTechnique(technique="quantize-dynamic", parameters={"a": 1}, source=root, target="this-machine")
    job = job_in(opened)
    made = Finished(
        variants=(
            draft(opened, job, "one.onnx", changed=Changed(summary="1 node")),
            draft(opened, job, "two.onnx", label="safer", parameters={"a": 2}, target="cpu-portable"),
        )
    )
    state, events = await adopt_into(opened, job, task, made, name="int8")
    first, second = (opened.variants[id] for id in state.variants)
    assert (first.name, second.name) == ("int8", "int8/safer")
    assert (first.parent, second.parent) == (root, root)
    assert (first.parameters, second.parameters) == ({"a": 1}, {"a": 2})
    assert (first.target, second.target) == ("cpu-vnni", "cpu-portable")
    assert [event.variant for event in events if isinstance(event, VariantAdded)] == [first, second]


async def test_one_bad_draft_leaves_nothing_of_the_others(opened):
    job = job_in(opened)
    good = draft(opened, job, "good.onnx")
    bad = VariantDraft(label="bad", format="onnx", files=("../../escape",), deployed_files=())
    with pytest.raises(SessionError):
        await adopt_into(opened, job, InspectModel(), Finished(variants=(good, bad)))
    await becomes(lambda: list((opened.directory / "variants").iterdir()) == [])
    assert opened.variants == {}


async def test_cancelled_while_files_are_copied_it_keeps_none_of_them(opened, monkeypatch):
    job = job_in(opened)
    copying, go_on, stored = threading.Event(), threading.Event(), threading.Event()
    store = opened.store_files

    def slow_store(*arguments):
        copying.set()
        assert go_on.wait(20)
        records = store(*arguments)
        stored.set()
        return records

    monkeypatch.setattr(opened, "store_files", slow_store)
    finished = Finished(variants=(draft(opened, job, "large.onnx"),))
    adopting = asyncio.create_task(adopt_into(opened, job, InspectModel(), finished))
    await asyncio.to_thread(copying.wait, 20)
    adopting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adopting
    go_on.set()
    assert await asyncio.to_thread(stored.wait, 20)
    await becomes(lambda: not list((opened.directory / "variants").iterdir()))
    assert opened.variants == {}
