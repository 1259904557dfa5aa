"""What is stored in a session comes back; what is asked of it is answered or refused with a sentence."""

import pytest
from session_makers import add_accuracy, add_latency, add_variant, is_whole, make_model

from engine.protocol import Job, Queued, RecipeRun, Running, SessionOptions, Step, VariantDraft
from engine.session import Session, SessionError


@pytest.fixture
def session(tmp_path):
    opened = Session.open(tmp_path / "s")
    yield opened
    opened.close()


def reopened(session: Session) -> Session:
    session.close()
    return Session.open(session.directory)


def test_everything_comes_back_after_opening_again(session):
    session.set_options(SessionOptions(accuracy_limit=0.02, batch_sizes=(4,)))
    session.set_model(make_model())
    base = add_variant(session, "baseline")
    child = add_variant(session, "int8", base)
    add_latency(session, child, 2.5)
    add_accuracy(session, child, 0.001)
    session.put_run(RecipeRun(id=session.new_id(), title="r", created=1.0, steps=(), finished=2.0))
    before = (session.options, session.model, session.variants, session.measurements, session.jobs, session.runs)
    again = reopened(session)
    assert (again.options, again.model, again.variants, again.measurements, again.jobs, again.runs) == before
    assert again.notices == []
    assert is_whole(again) == []


def test_ids_are_short_and_sort_by_age_even_when_the_clock_goes_back(session, monkeypatch):
    first = [session.new_id() for _ in range(100)]
    add_variant(session, "baseline")
    newest = max(session.variants)
    monkeypatch.setattr("engine.session.session.time.time", lambda: 1_800_000_000.0 - 10**8)
    again = reopened(session)
    assert first == sorted(set(first))
    assert again.new_id() > newest
    assert {len(id) for id in first} == {8}


def test_a_job_that_ran_when_the_engine_ended_has_failed_with_the_reason(session):
    session.put_job(Job(id="a1", kind="x", title="x", created=1.0, state=Running(started=1.0)))
    session.put_job(Job(id="a2", kind="x", title="x", created=1.0, state=Queued()))
    session.put_job(Job(id="a3", kind="x", title="x", created=1.0, state=Running(started=1.0, cancelling=True)))
    again = reopened(session)
    assert again.jobs["a1"].state.cause == "engine-stopped"
    assert "Run it again" in again.jobs["a1"].state.reason
    assert "before this job began" in again.jobs["a2"].state.reason
    assert type(again.jobs["a3"].state).__name__ == "Cancelled"
    assert reopened(again).jobs == again.jobs


def test_an_unfinished_run_is_over_after_its_engine(session):
    steps = tuple(
        Step(name=s, kind="technique", word="export-onnx", status=s) for s in ("succeeded", "running", "queued")
    )
    session.put_run(RecipeRun(id="r1", title="r", created=1.0, steps=steps))
    run = reopened(session).runs["r1"]
    assert [step.status for step in run.steps] == ["succeeded", "failed", "skipped"]
    assert run.finished is not None
    assert "Run it again" in run.error


def test_progress_is_kept_in_memory_only(session):
    job = Job(id="a1", kind="x", title="x", created=1.0, state=Queued())
    session.put_job(job)
    session.put_job(Job(id="a1", kind="x", title="later", created=1.0, state=Queued()), durable=False)
    assert session.jobs["a1"].title == "later"
    assert reopened(session).jobs["a1"].title == "x"


def test_variants_are_found_by_name_id_baseline_and_best(session):
    base = add_variant(session, "baseline")
    fast_but_wrong = add_variant(session, "fast", base)
    good = add_variant(session, "good", base)
    add_latency(session, base, 1.0)
    add_latency(session, fast_but_wrong, 4.0)
    add_accuracy(session, fast_but_wrong, 0.05)
    add_latency(session, good, 2.0)
    add_accuracy(session, good, 0.001)
    assert session.resolve("good") == session.resolve(good.id) == session.resolve("best") == good
    assert session.resolve("baseline") == base
    session.set_options(SessionOptions(accuracy_limit=0.06))
    assert session.resolve("best") == fast_but_wrong
    with pytest.raises(SessionError, match=r"There is no variant nonsense\. Known: baseline, fast, good, best"):
        session.resolve("nonsense")


def test_the_baseline_is_best_when_nothing_else_is_faster(session):
    base = add_variant(session, "baseline")
    slow = add_variant(session, "slow", base)
    with pytest.raises(SessionError, match="measured"):
        session.resolve("best")
    add_latency(session, base, 1.0)
    add_latency(session, slow, 0.7)
    add_accuracy(session, slow, 0.0)
    assert session.resolve("best") == base


def test_names_stay_unique(session):
    base = add_variant(session, "baseline")
    assert add_variant(session, "int8", base).name == "int8"
    assert add_variant(session, "int8", base).name == "int8-2"
    assert session.unique_name("best") == "best-2"
    assert session.unique_name("a\x1b]0;b\x07") == "a␛]0;b␇"


def test_a_variant_with_children_the_baseline_and_one_in_use_cannot_be_deleted(session):
    base = add_variant(session, "baseline")
    child = add_variant(session, "int8", base)
    grandchild = add_variant(session, "int8 again", child)
    with pytest.raises(SessionError, match="baseline"):
        session.delete_variant(base.id)
    with pytest.raises(SessionError, match="delete int8 again first"):
        session.delete_variant(child.id)
    session.put_job(Job(id="a1", kind="x", title="busy", created=1.0, state=Queued(), variant=grandchild.id))
    with pytest.raises(SessionError, match="in use by the job “busy”"):
        session.delete_variant(grandchild.id)


def test_a_deleted_variant_is_gone_with_its_files_and_measurements(session):
    base = add_variant(session, "baseline")
    child = add_variant(session, "int8", base)
    add_latency(session, child, 2.0)
    session.delete_variant(child.id)
    again = reopened(session)
    assert list(again.variants) == [base.id]
    assert again.measurements == {}
    assert again.notices == []
    assert is_whole(again) == []


@pytest.mark.parametrize("path", ["../secret", "/etc/hostname", "link", "linked/secret", "pipe", "manifest.json", ""])
def test_a_job_cannot_pass_off_a_file_that_is_not_its_own(session, tmp_path, path):
    import os

    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "secret").write_text("x")
    (work / "manifest.json").write_text("{}")
    (work / "link").symlink_to(tmp_path / "secret")
    (work / "linked").symlink_to(tmp_path)
    os.mkfifo(work / "pipe")
    draft = VariantDraft(label=None, format="onnx", files=(path,), deployed_files=())
    with pytest.raises(SessionError):
        session.store_files(session.new_id(), draft, work)
    assert list((session.directory / "variants").iterdir()) == []


def test_stored_files_are_copies_that_nobody_else_can_change(session):
    base = add_variant(session, "baseline")
    work = session.work_directory("abc")
    (work / "sub").mkdir()
    (work / "sub" / "a.onnx").write_bytes(b"1234")
    draft = VariantDraft(label=None, format="onnx", files=("sub/a.onnx",), deployed_files=())
    id = session.new_id()
    (record,) = session.store_files(id, draft, work)
    (work / "sub" / "a.onnx").write_bytes(b"other")
    stored = session.directory / "variants" / id / "sub" / "a.onnx"
    assert stored.read_bytes() == b"1234"
    assert stored.stat().st_mode & 0o222 == 0
    assert (record.path, record.size_bytes) == ("sub/a.onnx", 4)
    assert base.files[0].sha256 != record.sha256


def test_a_variant_whose_files_are_not_stored_is_refused(session):
    base = add_variant(session, "baseline")
    import msgspec

    with pytest.raises(SessionError, match="not stored whole"):
        session.add_variant(msgspec.structs.replace(base, id=session.new_id(), parent=base.id))


def test_ids_from_outside_cannot_lead_out_of_the_session(session):
    with pytest.raises(SessionError, match="is no id"):
        session.log_path("../../etc")


def test_old_work_is_removed_and_logs_are_kept(session):
    session.put_job(Job(id="a1", kind="x", title="x", created=1.0, state=Queued()))
    (session.work_directory("a1") / "big").write_bytes(b"x")
    session.log_path("a1").write_text("line")
    again = reopened(session)
    assert not (again.directory / "jobs" / "a1" / "work").exists()
    assert again.log_path("a1").read_text() == "line"


def test_only_the_newest_jobs_are_remembered(session, monkeypatch):
    monkeypatch.setattr("engine.session.recovery.JOBS_KEPT", 2)
    for id in ("a1", "a2", "a3"):
        session.put_job(Job(id=id, kind="x", title="x", created=1.0, state=Queued()))
        session.job_directory(id)
        session.record_metric(id, "loss", 1.0, 0, 1.0)
    again = reopened(session)
    assert sorted(again.jobs) == ["a2", "a3"]
    assert sorted(p.name for p in (again.directory / "jobs").iterdir()) == ["a2", "a3"]
    assert again.metrics("a1") == []
    assert again.metrics("a3") == [("loss", 1.0, 0, 1.0)]
