"""Where rounding every node costs too much, the few that cost it are found and stay in float."""

import numpy as np
import pytest
from technique_jobs import CONVOLUTIONAL, IMAGE, apply, cosine, open_python, run_technique

from engine.graphs.comparison import Difference
from engine.graphs.sensitivity import LEAST_COSINE, Answers, Judge, _noises, node_times
from engine.protocol import Logged
from engine.techniques.quantization import left_in_float

pytestmark = pytest.mark.usefixtures("no_choice_by_chance")

FRAGILE = """
class Net(nn.Module):
    '''One channel of the first layer is 1,000 times the others, which one scale for all rounds away.

    That it is read twice keeps equalisation from mending it.
    '''

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, bias=False)
        self.fragile = nn.Conv2d(8, 8, 1, bias=False)
        self.third = nn.Conv2d(8, 8, 3, bias=False)
        self.head = nn.Linear(8, 6, bias=False)
        torch.manual_seed(3)
        with torch.no_grad():
            self.first.weight[0] *= 1000
            self.fragile.weight[:, 0] /= 1000

    def forward(self, image):
        wide = torch.relu(self.first(image))
        x = torch.relu(self.fragile(wide))
        return self.head(torch.relu(self.third(x)).amax((2, 3))) + 1e-4 * wide.amax((2, 3))[:, :6]
"""


@pytest.fixture(scope="module")
def fragile(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fragile")
    return apply(open_python(directory, FRAGILE, IMAGE.replace("rand(", "randn(")), "export-onnx", directory)


def test_a_network_that_bears_it_gives_one_variant_and_says_that_no_node_stands_out(tmp_path):
    source = apply(open_python(tmp_path, CONVOLUTIONAL, IMAGE), "export-onnx", tmp_path)
    run = run_technique(source, "quantize-static", tmp_path)
    assert len(run.variants) == 1
    assert run.variants[0].record.changed.figures["nodes_left_for_accuracy"] == 0
    assert any("No few nodes make most of the error" in m.text for m in run.messages if isinstance(m, Logged))


MORE = ", ".join(["nn.Conv2d(8, 8, 3, padding=1, bias=False)"] * 5)

MILDER = (
    FRAGILE.replace("1000", "60")
    .replace("1e-4", "1e-3")
    .replace("self.third = ", f"self.more = nn.Sequential({MORE}); self.third = ")
    .replace("self.third(x)", "self.third(self.more(x))")
)


@pytest.mark.parametrize("speed", [0.95, 1.2, 0.7])
def test_a_more_exact_variant_is_offered_where_few_nodes_make_most_of_the_error(tmp_path, monkeypatch, speed):
    from engine.graphs import more_exact

    monkeypatch.setattr(more_exact, "time_in_turns", lambda *_: [1.0, speed])
    image = "torch.randn(batch_size, 3, 32, 32)"
    source = apply(open_python(tmp_path, MILDER, image), "export-onnx", tmp_path)
    plain = apply(source, "quantize-static", tmp_path, search="never")
    run = run_technique(source, "quantize-static", tmp_path)
    names = [variant.record.name for variant in run.variants]
    said = next(m.text for m in run.messages if isinstance(m, Logged) and "left in float gain" in m.text)
    assert "2 of 9 nodes left in float gain" in said
    if speed == 0.7:
        assert names == ["quantize-static"], "what it gains is not worth what it costs"
        assert "no second variant" in said
        return
    exact = run.variants[-1].record.changed.figures
    assert exact["nodes_left_for_accuracy"] == 2
    assert exact["sqnr_db"] > plain.record.changed.figures["sqnr_db"] + 3
    if speed == 1.2:
        assert names == ["quantize-static"], "the plain graph is slower and less exact: nobody wants it"
    else:
        assert names == ["quantize-static", "quantize-static/exact"]
        assert run.variants[0].path.read_bytes() == plain.path.read_bytes(), "the faster one is the plain graph"


def test_the_fragile_node_is_left_in_float_and_the_answers_hold(fragile, tmp_path):
    plain = apply(fragile, "quantize-static", tmp_path, search="never")
    run = run_technique(fragile, "quantize-static", tmp_path)
    first = run.variants[0]
    named = {left.name for left in first.record.changed.left if "costs the most accuracy" in left.reason}
    assert named & {"first/Conv", "fragile/Conv"}
    assert first.record.changed.figures["nodes_left_for_accuracy"] == len(named) < 3
    assert cosine(fragile, first) > cosine(fragile, plain)
    assert cosine(fragile, first) > LEAST_COSINE
    names = [variant.record.name for variant in run.variants]
    assert names[0] == "quantize-static"
    assert "quantize-static/fast" in names
    assert len({variant.path for variant in run.variants}) == len(names), "each has a file of its own"
    assert any(" left in float: " in m.text for m in run.messages if isinstance(m, Logged))


def test_one_node_is_not_called_nodes():
    assert left_in_float(["conv"], 1) == (
        "; 1 sensitive node left in float: conv; 1 node left in float because it is slower in integers here"
    )
    assert left_in_float(["a", "b", "c", "d"], 0) == "; 4 sensitive nodes left in float: a, b, c …"


def test_the_recipe_of_a_found_variant_pins_what_was_found(fragile, tmp_path):
    from engine.techniques import find_technique, parse_parameters

    work = tmp_path / "again"
    work.mkdir()
    found = run_technique(fragile, "quantize-static", tmp_path)
    made = found.files[0]
    assert made.parameters["search"] == "never"
    assert made.parameters["exclude"]
    assert parse_parameters("quantize-static", made.parameters)
    assert find_technique("quantize-static")
    again = apply(fragile, "quantize-static", work, **made.parameters)
    assert again.path.read_bytes() == found.variants[0].path.read_bytes()


def test_a_changed_answer_counts_against_the_limit_even_at_a_high_cosine():
    near = Difference(maximum=0.1, relative=0.01, cosine=0.9999, sqnr_db=40.0)
    assert Answers(near, 0.01).within(0.01)
    assert not Answers(near, 0.02).within(0.01)
    assert Answers(near, None).within(0.0)
    assert not Answers(Difference(1.0, 0.5, 0.98, 10.0), 0.0).within(0.01)


def test_the_judge_finds_a_graph_equal_to_itself(fragile):
    from engine.graphs.onnx_graph import load_graph

    model = load_graph(fragile.path)
    answers = Judge(model, [fragile.model.example(4)], 1).answers(model)
    assert answers.changed == 0
    assert answers.difference.cosine == pytest.approx(1.0)


def test_nodes_are_timed_by_their_names(fragile):
    from engine.graphs.onnx_graph import load_graph

    times = node_times(load_graph(fragile.path), fragile.model.example(4))
    assert {"first/Conv", "fragile/Conv", "third/Conv", "head/Gemm"} <= set(times)
    assert all(np.isfinite(seconds) and seconds >= 0 for seconds in times.values())


class Pretended:
    """A quantizer and a judge in one whose nodes make known noises; each look takes a known time."""

    def __init__(self, noises: dict[str, float], seconds: float, clock: list[float]) -> None:
        self.noises, self.seconds, self.clock, self.looks = noises, seconds, clock, 0

    def simulate(self, sensitive) -> set[str]:
        return set(self.noises) - set(sensitive)

    def answers(self, quantized: set[str], simulated: bool = False) -> Answers:
        self.clock[0] += self.seconds
        self.looks += 1
        noise = sum(self.noises[name] for name in quantized)
        return Answers(Difference(0.0, 0.0, 1.0, -10 * np.log10(max(noise, 1e-20))), None)

    def on_fewer(self, samples: int):
        return self


def looked_at(seconds: float, nodes: int, monkeypatch) -> tuple[list[tuple[float, list[str]]], Pretended, list[str]]:
    """Nodes of which the 37th makes nearly all the noise, looked at in so many seconds, one for each look."""
    clock = [0.0]
    monkeypatch.setattr("engine.graphs.sensitivity.time.monotonic", lambda: clock[0])
    noises = {f"n{index}": 1e-6 for index in range(nodes)} | {"n37": 1e-2}
    pretended, told = Pretended(noises, 1.0, clock), []
    found = _noises(pretended, pretended, list(noises), lambda share, what: told.append(what), seconds)
    return found, pretended, told


def test_with_time_enough_every_node_is_looked_at_alone(monkeypatch):
    found, pretended, told = looked_at(1000, 100, monkeypatch)
    assert pretended.looks == 201
    assert all(len(block) == 1 for _, block in found)
    assert max(found)[1] == ["n37"]
    assert told[0] == "error of 1 of 100: n0; 200 s left"


def test_with_little_time_blocks_are_looked_at_and_the_noisiest_are_split(monkeypatch):
    found, pretended, told = looked_at(60, 100, monkeypatch)
    assert pretended.looks <= 62, "the budget holds"
    assert sorted(name for _, block in found for name in block) == sorted(pretended.noises), "no node is forgotten"
    assert max(found)[1] == ["n37"], "the time that was left went to where the noise is"
    assert "more" in told[0]
    assert told[0].endswith("s left")


SLOWER_HERE = "left in float: it is slower in integers on this processor"


def test_nodes_that_are_slower_in_integers_go_back_where_the_graph_gains(tmp_path, monkeypatch):
    source = apply(open_python(tmp_path, CONVOLUTIONAL, IMAGE), "export-onnx", tmp_path)
    calls = []

    def times(model, feed):
        calls.append(model)
        return {"depthwise/Conv": 1e-3 * len(calls)}  # first the float graph, then the one in integers

    monkeypatch.setattr("engine.graphs.sensitivity.SLOWER", 1.2)
    monkeypatch.setattr("engine.graphs.sensitivity.node_times", times)
    monkeypatch.setattr("engine.graphs.sensitivity.time_in_turns", lambda models, feeds, threads, seconds: [1.0, 1.3])
    run = run_technique(source, "quantize-static", tmp_path)
    changed = run.variants[0].record.changed
    assert {left.name: left.reason for left in changed.left}["depthwise/Conv"] == SLOWER_HERE
    assert changed.figures["nodes_left_for_speed"] == 1
    assert changed.figures["nodes_left_for_accuracy"] == 0
    assert "depthwise/Conv" in run.files[0].parameters["exclude"], "the recipe pins it"
    calls.clear()
    monkeypatch.setattr("engine.graphs.sensitivity.time_in_turns", lambda models, feeds, threads, seconds: [1.0, 0.9])
    work = tmp_path / "again"
    work.mkdir()
    changed = run_technique(source, "quantize-static", work).variants[0].record.changed
    assert changed.figures["nodes_left_for_speed"] == 0, "the whole graph would be slower"
