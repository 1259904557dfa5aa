"""One look tells what was tried, what is best, what runs and what the hardware does, at every size."""

import msgspec
import pytest
import scenes
from driver import dashboard

SIZES = [(80, 24), (100, 30), (200, 50)]


@pytest.mark.parametrize("size", SIZES)
async def test_every_size_shows_variants_speed_verdict_job_and_hardware(size: tuple[int, int]) -> None:
    async with dashboard(scenes.work(1), size=size) as seen:
        await seen.sees("★ │ ├ int8", "4.11×", "✓ PASS", "✗ FAIL", "42 %", "1:18 left", "GPU 0", "CPU", "Best within")
        assert all(len(line) == size[0] for line in seen.text.split("\n"))


async def test_a_wide_terminal_shows_every_column() -> None:
    async with dashboard(size=(200, 50)) as seen:
        await seen.sees("Runtime", "95 % CI", "×parent", "p99 ms", "per s", "Params", "MACs", "? NOT ENOUGH DATA")


async def test_a_terminal_that_is_too_small_says_so_and_recovers() -> None:
    async with dashboard(size=(50, 20)) as seen:
        await seen.sees("too small")
        await seen.pilot.resize_terminal(100, 30)
        await seen.sees("1 Variants", "int8")


async def test_a_machine_without_a_gpu_says_so_calmly() -> None:
    async with dashboard(scenes.work(0)) as seen:
        await seen.sees("no NVIDIA GPU")


async def test_a_lost_gpu_shows_why_instead_of_figures() -> None:
    snapshot = scenes.work(1)
    lost = tuple(
        msgspec.structs.replace(sample, gpus=(scenes.GpuSample(index=0, status="GPU is lost"),))
        for sample in snapshot.telemetry
    )
    async with dashboard(msgspec.structs.replace(snapshot, telemetry=lost)) as seen:
        await seen.sees("GPU is lost")


async def test_telemetry_that_stopped_shows_its_age() -> None:
    snapshot = scenes.work(1)
    old = tuple(msgspec.structs.replace(sample, time=sample.time - 12) for sample in snapshot.telemetry)
    async with dashboard(msgspec.structs.replace(snapshot, telemetry=old)) as seen:
        await seen.sees("last sample 12 s ago")


async def test_a_throttled_gpu_says_why() -> None:
    async with dashboard(scenes.work(2), size=(200, 50)) as seen:
        await seen.sees("! power cap")


async def test_refused_steps_of_a_recipe_are_listed_with_their_reason() -> None:
    run = scenes.RecipeRun(
        id="r",
        title="my.toml",
        created=scenes.NOW,
        steps=(
            scenes.Step(name="int4", kind="technique", word="quantize-int4", status="refused", reason="No MatMul."),
        ),
    )
    async with dashboard(msgspec.structs.replace(scenes.work(), runs=(run,)), size=(200, 50)) as seen:
        await seen.sees("int4", "refused", "No MatMul.")


async def test_figures_under_another_runtime_are_marked_in_a_narrow_terminal() -> None:
    work = scenes.work()
    openvino = msgspec.structs.replace(scenes.CONDITIONS["onnxruntime"], runtime="openvino")
    measured = tuple(
        msgspec.structs.replace(one, conditions=openvino) if one.variant == "v2" else one for one in work.measurements
    )
    for width in (80, 100):
        async with dashboard(msgspec.structs.replace(work, measurements=measured), size=(width, 30)) as seen:
            await seen.sees("int8 · OpenVINO")
