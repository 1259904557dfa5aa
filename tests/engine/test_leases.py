"""Who may run beside whom."""

from engine.jobs.leases import Claim, startable


def claim(job: str, device: str = "cpu", exclusive: bool = False) -> Claim:
    return Claim(job=job, title=f"job {job}", device=device, exclusive=exclusive)


def names(claims: list[Claim]) -> list[str]:
    return [one.job for one in claims]


def test_jobs_on_one_device_run_one_after_the_other():
    started, blocked = startable([], [claim("a"), claim("b")])
    assert names(started) == ["a"]
    assert blocked == {"b": "job a"}


def test_jobs_on_different_gpus_run_together():
    started, _ = startable([], [claim("a", "cuda:0"), claim("b", "cuda:1"), claim("c", "cpu")])
    assert names(started) == ["a", "b", "c"]


def test_a_measurement_runs_alone_whatever_its_device():
    started, blocked = startable([claim("a", "cuda:0")], [claim("m", "cpu", exclusive=True)])
    assert started == []
    assert blocked == {"m": "job a"}
    started, blocked = startable([claim("m", "cpu", exclusive=True)], [claim("a", "cuda:0")])
    assert started == []
    assert blocked == {"a": "job m"}


def test_a_waiting_measurement_is_not_overtaken():
    started, blocked = startable([claim("a")], [claim("m", exclusive=True), claim("b", "cuda:0")])
    assert started == []
    assert blocked == {"m": "job a", "b": "job m"}


def test_a_free_gpu_is_used_past_a_job_that_waits_for_the_cpu():
    started, blocked = startable([claim("a")], [claim("b"), claim("c", "cuda:0"), claim("d", "cuda:0")])
    assert names(started) == ["c"]
    assert blocked == {"b": "job a", "d": "job c"}
