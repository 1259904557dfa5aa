"""Who may run beside whom."""

from engine.jobs.leases import Claim, startable


def claim(job: str, device: str = "cpu", exclusive: bool = False, **more: bool) -> Claim:
    return Claim(job=job, title=f"job {job}", device=device, exclusive=exclusive, **more)


def server(job: str) -> Claim:
    return claim(job, serves=True, bears_servers=True)


def load_on_a_server(job: str) -> Claim:
    return claim(job, exclusive=True, bears_servers=True)


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


def test_servers_bear_each_other_and_the_load_that_is_sent_to_them():
    started, _ = startable([server("s")], [server("t"), load_on_a_server("l")])
    assert names(started) == ["t", "l"]


def test_whoever_else_measures_or_computes_waits_for_a_server():
    started, blocked = startable([server("s")], [claim("m", exclusive=True), claim("a")])
    assert started == []
    assert blocked == {"m": "job s", "a": "job s"}


def test_a_load_on_a_server_passes_those_who_wait_for_the_server_and_nobody_else():
    started, _ = startable([server("s")], [claim("m", exclusive=True), load_on_a_server("l")])
    assert names(started) == ["l"]
    started, blocked = startable([claim("a")], [claim("m", exclusive=True), load_on_a_server("l")])
    assert started == []
    assert blocked == {"m": "job a", "l": "job a"}


def test_two_loads_on_servers_do_not_disturb_each_other():
    started, blocked = startable([server("s"), load_on_a_server("l")], [load_on_a_server("k")])
    assert started == []
    assert blocked == {"k": "job l"}
