"""A recipe run opens the model, makes and measures variants, and stops only what is built on something bad."""

import asyncio

import pytest
from quick_jobs import QuickJobs, failed
from session_makers import add_variant

from engine.protocol import ApplyTechnique, MeasureVariant, OpenModel, RunChanged, RunRecipe, SessionOptions
from engine.recipes import RecipeRunner
from engine.recipes.files import RecipeError
from engine.session import Session, SessionError

CHAIN = """
model = "net.py"
accuracy_limit = 0.02
batch_sizes = [4]
[[steps]]
technique = "export-onnx"
[[steps]]
technique = "quantize-static"
name = "int8"
"""


class Bench:
    """A session, a quick queue and a runner, with a model file and recipes beside them."""

    def __init__(self, directory):
        self.directory = directory
        self.session = Session.open(directory / "s")
        self.jobs = QuickJobs(self.session)
        self.events = []
        self.runner = RecipeRunner(self.session, self.jobs, self.events.append)
        (directory / "net.py").write_text("def load_model(): ...")

    async def recipe(self, text, **options):
        (self.directory / "recipe.toml").write_text(text)
        command = RunRecipe(request=1, path=str(self.directory / "recipe.toml"), **options)
        return await self.ended(self.runner.start_recipe(command))

    async def open(self, name="net.py", **options):
        command = OpenModel(request=1, path=str(self.directory / name), **options)
        return await self.ended(self.runner.start_open(command))

    async def apply(self, technique, source="baseline", **options):
        command = ApplyTechnique(request=1, technique=technique, source=source, **options)
        return await self.ended(self.runner.start_apply(command))

    async def over(self, run):
        if task := self.runner._tasks.get(run.id):
            await asyncio.wait_for(task, timeout=20)

    async def ended(self, run):
        await self.over(run)
        return self.session.runs[run.id]


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.session.close()


def statuses(run):
    return [step.status for step in run.steps]


async def test_a_recipe_opens_the_model_and_makes_and_measures_each_step(bench):
    run = await bench.recipe(CHAIN)
    assert run.error is None
    assert statuses(run) == ["succeeded", "succeeded"]
    assert bench.jobs.ran == [
        ("open-model", ""),
        ("accuracy", "baseline"),
        ("latency", "baseline"),
        ("export-onnx", "baseline"),
        ("accuracy", "export-onnx"),
        ("latency", "export-onnx"),
        ("quantize-static", "export-onnx"),
        ("accuracy", "int8"),
        ("latency", "int8"),
    ]
    int8 = bench.session.resolve("int8")
    assert run.steps[1].variants == (int8.id,)
    assert int8.parent == bench.session.resolve("export-onnx").id
    assert int8.target == "cpu-vnni"
    assert bench.session.options == SessionOptions(accuracy_limit=0.02, batch_sizes=(4,))
    last = [event for event in bench.events if isinstance(event, RunChanged)][-1]
    assert last.run == run


async def test_running_a_recipe_again_does_nothing_again(bench):
    await bench.recipe(CHAIN)
    bench.jobs.ran.clear()
    run = await bench.recipe(CHAIN)
    assert bench.jobs.ran == []
    assert statuses(run) == ["succeeded", "succeeded"]
    assert [step.reused for step in run.steps] == [True, True]
    assert [variant.name for variant in bench.session.variants.values()] == ["baseline", "export-onnx", "int8"]


async def test_another_parameter_target_or_batch_size_is_done_and_nothing_else(bench):
    await bench.recipe(CHAIN)
    bench.jobs.ran.clear()
    await bench.recipe(CHAIN + "samples = 10\n")
    assert [kind for kind, _ in bench.jobs.ran] == ["quantize-static", "accuracy", "latency"]
    bench.jobs.ran.clear()
    await bench.recipe(CHAIN + 'target = "cpu-portable"\n')
    assert [kind for kind, _ in bench.jobs.ran] == ["quantize-static", "accuracy", "latency"]
    bench.jobs.ran.clear()
    await bench.recipe(CHAIN.replace("[4]", "[4, 16]"))
    assert bench.jobs.ran == [("latency", "baseline"), ("latency", "export-onnx"), ("latency", "int8")]
    sizes = {m.batch_size for m in bench.session.measurements.values() if hasattr(m, "batch_size")}
    assert sizes == {4, 16}


async def test_a_parameter_given_as_its_default_is_the_same(bench):
    await bench.recipe(CHAIN)
    bench.jobs.ran.clear()
    await bench.recipe(CHAIN + "samples = 256\n")
    assert bench.jobs.ran == []


async def test_variants_from_another_class_of_processor_are_made_again(bench):
    import msgspec

    await bench.recipe(CHAIN)
    bench.jobs.ran.clear()
    old = bench.runner.hardware
    processor = msgspec.structs.replace(old.processor, features=("avx2",))
    bench.runner.hardware = msgspec.structs.replace(old, processor=processor)
    run = await bench.recipe(CHAIN)
    assert ("quantize-static", "export-onnx-2") in bench.jobs.ran
    notices = [step.notice for step in run.steps if step.word == "quantize-static"]
    assert len(notices) == 1
    assert "made on x86-64 with VNNI; this is x86-64 without VNNI, so it was made again" in (notices[0] or "")
    assert all(step.notice is None for step in run.steps if step.word != "quantize-static")


@pytest.mark.parametrize("target", ["cpu-vnni", "cuda"])
async def test_16_bit_floats_for_a_cpu_are_said_to_be_slower_there(bench, target):
    chain = CHAIN.replace("quantize-static", "quantize-fp16").replace('"int8"', f'"half"\ntarget = "{target}"')
    for _ in range(2):
        notice = (await bench.recipe(chain)).steps[1].notice
        if target == "cuda":
            assert notice is None
        else:
            assert "on a CPU (cpu-vnni) most graphs get smaller by them, but slower" in notice


async def test_a_refused_step_runs_nothing_and_says_why(bench):
    run = await bench.recipe('model = "net.py"\n[[steps]]\ntechnique = "quantize-static"\n')
    assert statuses(run) == ["refused"]
    assert "export-onnx" in run.steps[0].reason
    assert "quantize-static" not in [kind for kind, _ in bench.jobs.ran]


async def test_a_failed_step_stops_what_names_it_and_nothing_else(bench):
    bench.jobs.failures["int8"] = failed("The kernel killed it.")
    run = await bench.recipe(
        CHAIN
        + """
[[steps]]
technique = "quantize-dynamic"
from = "int8"
name = "on top"
[[steps]]
technique = "quantize-dynamic"
from = "on top"
[[steps]]
technique = "quantize-dynamic"
name = "implicit"
"""
    )
    assert statuses(run) == ["succeeded", "failed", "skipped", "skipped", "succeeded"]
    assert run.steps[1].reason == "The kernel killed it."
    assert run.steps[2].reason == "int8 failed."
    assert run.steps[3].reason == "on top was skipped."
    assert bench.session.resolve("implicit").parent == bench.session.resolve("export-onnx").id


async def test_a_step_beyond_the_limit_succeeds_but_is_not_built_on(bench):
    bench.jobs.drops["int8"] = 0.05
    more = """
[[steps]]
technique = "quantize-dynamic"
name = "implicit"
[[steps]]
technique = "quantize-dynamic"
from = "int8"
name = "explicit"
[[steps]]
measurement = "latency"
from = "int8"
batch_sizes = [2]
"""
    run = await bench.recipe(CHAIN + more)
    assert statuses(run) == ["succeeded", "succeeded", "succeeded", "skipped", "succeeded"]
    assert run.steps[3].reason == "int8 breaks the accuracy limit (drop 5.00 points, limit 2.00)."
    assert bench.session.resolve("implicit").parent == bench.session.resolve("export-onnx").id
    assert ("latency", "int8") in bench.jobs.ran
    run = await bench.recipe(CHAIN + "beyond_limit = true\n" + more)
    assert statuses(run) == ["succeeded"] * 5
    assert bench.session.variants[run.steps[3].variants[0]].parent == bench.session.resolve("int8").id


async def test_a_worker_that_refuses_is_a_refused_step(bench):
    bench.jobs.failures["int8"] = failed("No node was quantized.", cause="refused")
    assert statuses(await bench.recipe(CHAIN)) == ["succeeded", "refused"]


async def test_a_variant_that_could_not_be_measured_has_not_succeeded(bench):
    bench.jobs.failures["export-onnx"] = None
    await bench.open()
    bench.jobs.failures["int8"] = None
    bench.jobs.failures["accuracy"] = failed("test_data() raised ValueError.")
    run = await bench.apply("export-onnx")
    assert statuses(run) == ["failed"]
    assert run.steps[0].reason == "export-onnx was made, but not measured. test_data() raised ValueError."
    assert run.steps[0].variants == (bench.session.resolve("export-onnx").id,)


async def test_a_front_of_variants_is_measured_whole_and_found_again(bench):
    bench.jobs.labels["int8"] = ["small", "fast"]
    bench.jobs.drops["int8/small"] = 0.2
    text = CHAIN + '[[steps]]\ntechnique = "quantize-dynamic"\nfrom = "int8/fast"\nname = "next"\n'
    run = await bench.recipe(text)
    assert statuses(run) == ["succeeded"] * 3
    assert len(run.steps[1].variants) == 3
    assert bench.session.resolve("next").parent == bench.session.resolve("int8/fast").id
    bench.jobs.ran.clear()
    again = await bench.recipe(text)
    assert [step.variants for step in again.steps] == [step.variants for step in run.steps]
    assert bench.jobs.ran == []


async def test_a_load_test_is_a_step_with_settings_of_its_own(bench):
    run = await bench.recipe('model = "net.py"\n[[steps]]\nmeasurement = "load-test"\nrate = 50\nmax_batch_size = 4\n')
    assert statuses(run) == ["succeeded"]
    task = bench.jobs.requests[-1].task
    assert (task.settings.rate, task.settings.max_batch_size) == (50, 4)
    assert task.runtime == "pytorch"


async def test_runtimes_of_a_recipe_say_where_variants_are_measured(bench):
    await bench.recipe(CHAIN.replace("batch_sizes", 'runtimes = ["onnxruntime"]\nbatch_sizes'))
    where = {
        (bench.session.variants[m.variant].name, m.conditions.runtime) for m in bench.session.measurements.values()
    }
    assert where == {("baseline", "pytorch"), ("export-onnx", "onnxruntime"), ("int8", "onnxruntime")}


async def test_a_model_that_does_not_open_ends_the_run_with_its_sentence(bench):
    bench.jobs.failures["open-model"] = failed("net.py has no load_model().")
    run = await bench.recipe(CHAIN)
    assert run.error == "net.py has no load_model()."
    assert statuses(run) == ["skipped", "skipped"]


async def test_opening_again_is_over_at_once_and_another_model_is_refused(bench):
    await bench.open()
    bench.jobs.ran.clear()
    assert (await bench.open()).error is None
    assert bench.jobs.ran == []
    (bench.directory / "other.py").write_text("def load_model(): 1")
    assert "This session belongs to net.py" in (await bench.open("other.py")).error
    (bench.directory / "copy.py").write_text((bench.directory / "net.py").read_text())
    assert (await bench.open("copy.py")).error is None
    (bench.directory / "net.py").write_text("def load_model(): changed")
    assert "net.py has changed" in (await bench.open()).error
    assert bench.jobs.ran == []


async def test_a_model_file_that_was_moved_is_found_at_its_new_place(bench):
    await bench.open()
    (bench.directory / "net.py").rename(bench.directory / "moved.py")
    assert (await bench.open("moved.py")).error is None
    assert bench.session.model.source.path == str(bench.directory / "moved.py")


async def test_two_recipes_at_once_open_the_model_once(bench):
    (bench.directory / "recipe.toml").write_text(CHAIN)
    command = RunRecipe(request=1, path=str(bench.directory / "recipe.toml"))
    runs = [bench.runner.start_recipe(command) for _ in range(2)]
    for run in runs:
        assert (await bench.ended(run)).error is None
    assert [v.name for v in bench.session.variants.values() if v.parent is None] == ["baseline"]


async def test_cancelling_a_run_ends_its_job_and_its_other_steps(bench):
    bench.jobs.blocked_on = "export-onnx"
    (bench.directory / "recipe.toml").write_text(CHAIN)
    run = bench.runner.start_recipe(RunRecipe(request=1, path=str(bench.directory / "recipe.toml")))
    await bench.jobs.started.wait()
    assert bench.runner.cancel(run.id)
    run = await bench.ended(run)
    assert statuses(run) == ["cancelled", "cancelled"]
    assert run.error == "Cancelled by the user."
    assert not bench.runner.cancel(run.id)
    assert bench.jobs.ran[-1] == ("export-onnx", "baseline")


async def test_a_run_that_ends_with_the_engine_is_left_for_the_next_one_to_say(bench):
    bench.jobs.blocked_on = "export-onnx"
    (bench.directory / "recipe.toml").write_text(CHAIN)
    run = bench.runner.start_recipe(RunRecipe(request=1, path=str(bench.directory / "recipe.toml")))
    await bench.jobs.started.wait()
    bench.jobs.closed = True
    bench.jobs.cancel(next(j.id for j in bench.session.jobs.values() if not j.is_done))
    await bench.over(run)
    bench.session.close()
    reopened = Session.open(bench.directory / "s").runs[run.id]
    assert statuses(reopened) == ["failed", "skipped"]
    assert "engine stopped" in reopened.error


async def test_apply_names_its_variant_and_checks_before_it_starts(bench):
    with pytest.raises(SessionError, match="Open one first"):
        bench.runner.start_apply(ApplyTechnique(request=1, technique="export-onnx", source="baseline"))
    await bench.open()
    run = await bench.apply("export-onnx", name="graph")
    assert statuses(run) == ["succeeded"]
    run = await bench.apply("quantize-static", source="graph", parameters={"samples": "12"})
    assert bench.session.resolve("quantize-static").parameters["samples"] == 12
    with pytest.raises(RecipeError, match="samples"):
        await bench.apply("quantize-static", source="graph", parameters={"samples": "many"})
    with pytest.raises(SessionError, match=r"no variant nonsense\. Known: baseline, graph"):
        await bench.apply("quantize-static", source="nonsense")
    with pytest.raises(SessionError, match="quantize-static"):
        await bench.apply("quantize-magic", source="graph")


async def test_a_variant_beyond_the_limit_can_be_built_on_by_hand(bench):
    bench.jobs.drops["graph"] = 0.5
    await bench.open()
    await bench.apply("export-onnx", name="graph")
    assert statuses(await bench.apply("quantize-static", source="graph")) == ["succeeded"]


async def test_measuring_by_hand_measures_again(bench):
    await bench.open()
    bench.jobs.ran.clear()
    command = MeasureVariant(request=1, variant="baseline", kinds=("latency",), batch_sizes=(2,))
    run = await bench.ended(bench.runner.start_measure(command))
    await bench.ended(bench.runner.start_measure(command))
    assert bench.jobs.ran == [("latency", "baseline")] * 2
    assert statuses(run) == ["succeeded"]
    with pytest.raises(RecipeError, match="no device cuda:0 here"):
        bench.runner.start_measure(MeasureVariant(request=1, variant="baseline", device="cuda:0"))


async def test_a_recipe_for_another_content_of_the_model_is_refused(bench):
    text = CHAIN.replace("accuracy_limit", f'model_sha256 = "{"0" * 64}"\naccuracy_limit')
    run = await bench.recipe(text)
    assert "not the model this recipe was written for" in run.error
    assert (await bench.recipe(text, model=str(bench.directory / "net.py"))).error is None


async def test_missing_files_and_untrusted_pickles_are_refused_before_anything_starts(bench):
    for name, sentence in (("missing.py", "no model file"), ("net.txt", "opens .py"), ("net.pt", "--trust")):
        if name != "missing.py":
            (bench.directory / name).write_text("x")
        with pytest.raises(RecipeError, match=sentence):
            await bench.open(name)
        with pytest.raises(RecipeError, match=sentence):
            await bench.recipe(CHAIN.replace("net.py", name))
    assert bench.session.runs == {}
    assert (await bench.open("net.pt", trusted=True)).error is None


async def test_a_made_variant_whose_job_never_ended_is_made_again(bench):
    await bench.open()
    base = bench.session.resolve("baseline")
    import msgspec

    left = add_variant(bench.session, "export-onnx", base, technique="export-onnx")
    bench.session.put_job(msgspec.structs.replace(bench.session.jobs[left.job], state=failed("x", "engine-stopped")))
    run = await bench.apply("export-onnx")
    assert run.steps[0].variants != (left.id,)


@pytest.mark.parametrize(
    ("accuracy", "samples", "told"), [(0.75, 640, True), (0.918, 640, False), (0.90, 100, False), (1.0, 10_000, True)]
)
async def test_a_baseline_of_another_accuracy_than_the_recipe_recorded_is_told(bench, accuracy, samples, told):
    recorded = f"[steps.recorded]\naccuracy_kind = 'accuracy'\naccuracy = {accuracy - 0.01}\naccuracy_drop = 0.01\n"
    run = await bench.recipe(CHAIN + recorded + f"accuracy_samples = {samples}\n")
    (notice, *others) = [step.notice for step in run.steps]
    assert others == [None]
    assert (notice is not None) is told
    if told:
        assert f"92.00 % on 10000 samples here; where the recipe was recorded it was {accuracy * 100:.2f} %" in notice
        assert "another one" in notice


PYTORCH_LAST = """
model = "net.py"
[[steps]]
technique = "export-onnx"
[[steps]]
technique = "quantize-static"
[[steps]]
technique = "prune-unstructured"
name = "sparse"
"""


async def test_a_step_that_needs_pytorch_and_follows_a_graph_says_what_to_build_on(bench):
    run = await bench.recipe(PYTORCH_LAST)
    assert statuses(run) == ["succeeded", "succeeded", "refused"]
    assert run.steps[2].reason.endswith(
        'is ONNX. Its last PyTorch ancestor is baseline: give the step from = "baseline".'
    )
    run = await bench.recipe(PYTORCH_LAST + 'from = "baseline"\n')
    assert statuses(run)[2] == "succeeded"
    assert bench.jobs.requests[-3].title == "Unstructured pruning of baseline → sparse"


async def test_apply_to_a_graph_names_the_pytorch_ancestor(bench):
    await bench.recipe(CHAIN)
    run = await bench.apply("prune-unstructured", "int8")
    assert run.steps[0].reason.endswith("int8 is ONNX. Its last PyTorch ancestor is baseline.")
