"""What a load test may be asked to do: recipes, forms and commands read into settings, with sentences."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from session_makers import add_variant

from engine.protocol import LoadKnobs, LoadSettings, Steer, SteerLoad
from engine.recipes.files import RecipeError, read_recipe
from engine.recipes.loads import check_knobs, check_load, describe_load_test, read_load, search_key
from engine.server.commands import CommandError, _steer
from engine.session import Session, SessionError


def test_a_load_is_read_from_text_as_from_numbers() -> None:
    assert read_load({"rate": "200", "seconds": 5, "max_batch_size": "8"}) == LoadSettings(
        rate=200.0, seconds=5.0, max_batch_size=8
    )
    assert read_load({"offline": "true"}).offline is True


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({}, "say what load"),
        ({"rate": 5, "concurrency": 2}, "rate and concurrency exclude each other"),
        ({"rate": -1}, "rate: expected `float` > 0"),
        ({"rat": 5}, "Did you mean rate?"),
        ({"rate": 5, "seconds": 0.5}, "leave nothing to measure after 1 s of warm-up"),
        ({"rate": 5, "seconds": 5, "warm_up_seconds": 6}, "warm_up_seconds must be shorter"),
        ({"arrivals": "replay"}, "a replay needs a trace"),
        ({"arrivals": "replay", "trace": "here.txt"}, "whole path of the trace"),
        ({"offline": True, "rows_per_request": 64}, "a request of 64 rows fits no batch of 32"),
        ({"sweep": True, "sweep_batch_sizes": [0, 4]}, "sweep_batch_sizes must be between 1 and 65,536"),
        ({"sweep": True, "sweep_instances": [1, 65]}, "sweep_instances must be between 1 and 64"),
        ({"sweep": True, "sweep_waits_ms": []}, "at least one batch size and one wait"),
        ({"rate": 1e7, "seconds": 86_400}, "864,000,000,000 requests; the times of each take 180 bytes"),
        ({"rate": 1e7}, "Lower the rate, or make it shorter"),
        (
            {"rate": 5, "preferred_batch_sizes": [8, 64]},
            "preferred_batch_sizes must be between 1 and max_batch_size (32)",
        ),
        ({"rate": 5, "url": "http://x:1", "priority_levels": 2}, "a server has its own priorities"),
        ({"rate": 5, "url": "ftp://x"}, "http://host:port or grpc://host:port"),
        ({"rate": 5, "trace": "/t.txt"}, 'trace counts only with arrivals = "replay"'),
        ({"rate": 5, "burst_size": 4}, 'burst_size counts only with arrivals = "bursty"'),
        ({"concurrency": 5, "arrivals": "bursty"}, "arrivals counts only with a load that follows a schedule"),
        ({"concurrency": 5, "arrivals": "replay", "trace": "/t.txt"}, "arrivals counts only with a load that follows"),
        ({"offline": True, "trace": "/t.txt"}, "trace counts only with a load that follows a schedule: a rate,"),
        ({"offline": True, "burst_size": 4}, "burst_size counts only with a load that follows a schedule"),
        ({"sweep": True, "arrivals": "replay", "trace": "/t.txt"}, "arrivals counts only with a load that follows"),
        ({"rate": 5, "model_name": "m"}, "model_name counts only with url"),
        ({"rate": 5, "url": "http://a:1", "instances": 2}, "with url instances is the server's own: leave it out"),
        ({"rate": 5, "url": "http://a:1", "wait": "always"}, "with url wait is the server's own"),
        ({"sweep": True, "offline": True}, "a sweep sends at a rate or from callers, not offline"),
        ({"rate": 5, "sweep_waits_ms": [0, 5]}, "sweep_waits_ms counts only with sweep"),
        ({"sweep": True, "url": "http://x:1"}, "a server's batching cannot be changed"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(raw: dict, sentence: str) -> None:
    with pytest.raises(SessionError) as caught:
        read_load(raw)
    assert sentence in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


def test_how_requests_arrive_may_be_said_wherever_there_is_a_schedule() -> None:
    bursty = {"arrivals": "bursty", "burst_size": 4}
    for load in ({"rate": 5}, {"slo_p99_ms": 10}, {"sweep": True, "rate": 5}):
        assert read_load(load | bursty).burst_size == 4
    assert (
        read_load({"concurrency": 5, "arrivals": "poisson", "burst_size": 8}).concurrency == 5
    )  # as a form fills it in


def test_what_is_asked_says_what_is_searched() -> None:
    assert read_load({"rate": 5}).kind == "run"
    assert read_load({"rate": 5, "slo_p99_ms": 10}).kind == "run"
    assert read_load({"slo_p99_ms": 10}).kind == "rate"
    assert read_load({"sweep": True}).kind == "sweep"
    assert read_load({"sweep": True}).duration < read_load({"rate": 5}).duration == 10.0
    assert read_load({"sweep": True, "seconds": 10}).duration == 10.0
    assert read_load({"arrivals": "replay", "trace": "/t.txt"}).duration is None
    assert read_load({"arrivals": "replay", "trace": "/t.txt", "seconds": 10}).duration == 10.0
    assert read_load({"rate": 1000, "seconds": 20_000}).duration == 20_000


def test_a_form_shows_every_setting_with_its_limits_and_hears_of_errors() -> None:
    info = describe_load_test(None, None)
    fields = {field.name: field for field in info.fields}
    assert set(fields) == set(LoadSettings.__struct_fields__)
    assert all(field.description for field in info.fields)
    none = {name for name, field in fields.items() if field.optional and field.empty == "none"}
    assert none == {"slo_p99_ms", "timeout_ms", "trace", "url"}
    assert fields["arrivals"].choices == ("poisson", "constant", "bursty", "replay")
    assert fields["max_batch_size"].minimum == 1
    assert info.unavailable == "Open a model first."
    assert check_load({"rate": "x"}).keys() == {"rate"}
    assert check_load({}).keys() == {""}
    assert check_load({"rate": "5"}) == {}


def test_knobs_are_checked_like_settings() -> None:
    assert check_knobs(LoadKnobs(rate=5.0, paused=True)) == LoadKnobs(rate=5.0, paused=True)
    with pytest.raises(SessionError, match="max_batch_size: expected"):
        check_knobs(LoadKnobs(max_batch_size=0))


@pytest.mark.parametrize(
    ("load", "knobs", "sentence"),
    [
        ({"concurrency": 4}, {"rate": 5.0}, "and no rate: change its concurrency."),
        ({"rate": 5}, {"concurrency": 4}, "has no concurrency: change its rate."),
        ({"offline": True}, {"rate": 5.0}, "as fast as possible"),
        ({"offline": True}, {"concurrency": 4}, "as fast as possible"),
        ({"rate": 5, "url": "http://x:1"}, {"max_batch_size": 4}, "The batching of a server cannot be changed"),
        ({"rate": 5, "url": "http://x:1"}, {"rate": 6.0, "max_wait_ms": 0.0}, "The batching of a server"),
        ({"rate": 5, "rows_per_request": 8}, {"max_batch_size": 4}, "A request of 8 rows fits no batch of 4."),
    ],
)
def test_a_knob_that_a_load_test_does_not_have_is_refused_by_the_engine(
    load: dict[str, Any], knobs: dict[str, Any], sentence: str
) -> None:
    told: list[Steer] = []
    loads = {"one": read_load(load)}
    jobs = SimpleNamespace(load_of=loads.get, steer=lambda job, message: told.append(message))
    engine = cast(Any, SimpleNamespace(session=SimpleNamespace(jobs=loads), jobs=jobs))
    with pytest.raises(SessionError) as caught:
        _steer(engine, SteerLoad(request=0, job="one", knobs=LoadKnobs(**knobs)))
    assert sentence in str(caught.value)
    assert told == []
    _steer(engine, SteerLoad(request=0, job="one", knobs=LoadKnobs(paused=True), stop=True))
    assert len(told) == 1


@pytest.mark.parametrize(
    ("load", "knobs"),
    [
        ({"concurrency": 4}, {"concurrency": 5, "max_batch_size": 4, "instances": 2}),
        ({"rate": 5}, {"rate": 6.0, "max_wait_ms": 0.0}),
        ({"arrivals": "replay", "trace": "/t.txt"}, {"rate": 6.0}),
        ({"offline": True, "rows_per_request": 8}, {"max_batch_size": 8}),
        ({"concurrency": 5, "url": "http://x:1"}, {"concurrency": 6}),
    ],
)
def test_a_knob_that_a_load_test_has_is_turned(load: dict[str, Any], knobs: dict[str, Any]) -> None:
    assert check_knobs(LoadKnobs(**knobs), read_load(load)) == LoadKnobs(**knobs)


def test_the_same_question_has_the_same_key_and_another_has_not(tmp_path: Path) -> None:
    session = Session.open(tmp_path / "m.trimtab")
    variant = add_variant(session, "baseline")
    asked = read_load({"slo_p99_ms": 10})
    key = search_key(variant, "onnxruntime", "cpu", "avx2", asked)
    assert key == search_key(variant, "onnxruntime", "cpu", "avx2", asked)
    assert key.startswith("rate-")
    assert key != search_key(variant, "onnxruntime", "cpu", "avx2,vnni", asked)
    assert key != search_key(variant, "onnxruntime", "cpu", "avx2", read_load({"slo_p99_ms": 11}))
    assert search_key(variant, "onnxruntime", "cpu", "avx2", read_load({"rate": 5})) == ""
    session.close()


def test_a_recipe_with_a_load_test_is_checked_before_anything_runs(tmp_path: Path) -> None:
    def recipe(lines: str) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(f'model = "m.py"\n[[steps]]\nmeasurement = "load-test"\n{lines}\n')
        return path

    step = read_recipe(recipe("rate = 200\nseconds = 20")).steps[0]
    assert (step.word, step.parameters) == ("load-test", {"rate": 200, "seconds": 20})
    replay = read_recipe(recipe('arrivals = "replay"\ntrace = "trace.txt"')).steps[0]
    assert replay.parameters["trace"] == str(tmp_path / "trace.txt")
    with pytest.raises(RecipeError, match="step 1: say what load"):
        read_recipe(recipe("seconds = 20"))
    with pytest.raises(RecipeError, match="Did you mean max_batch_size"):
        read_recipe(recipe("rate = 2\nmax_batchsize = 20"))


def test_a_search_and_a_sweep_take_no_knobs_only_a_stop() -> None:
    told: list[Steer] = []
    loads = {"one": LoadSettings(rate=5.0), "search": LoadSettings(slo_p99_ms=5.0), "sweep": LoadSettings(sweep=True)}
    jobs = SimpleNamespace(load_of=loads.get, steer=lambda job, message: told.append(message))
    engine = cast(Any, SimpleNamespace(session=SimpleNamespace(jobs=loads), jobs=jobs))
    pause = LoadKnobs(paused=True)
    _steer(engine, SteerLoad(request=0, job="one", knobs=pause))
    for kind in ("search", "sweep"):
        with pytest.raises(CommandError, match=f"A {kind} chooses load and batching by itself"):
            _steer(engine, SteerLoad(request=0, job=kind, knobs=pause))
        _steer(engine, SteerLoad(request=0, job=kind, stop=True))
    assert [(one.knobs == pause, one.stop) for one in told] == [(True, False), (False, True), (False, True)]
