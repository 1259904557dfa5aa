"""For the kill tests: a recipe that takes seconds, what was shown as done meanwhile, and what must hold afterwards."""

import hashlib
import sys
from pathlib import Path

from engines import PATIENCE, becomes, until

from engine.client import EngineClient
from engine.protocol import (
    DeleteVariant,
    Job,
    JobChanged,
    Measurement,
    MeasurementAdded,
    RecipeRun,
    RunAccepted,
    RunChanged,
    RunRecipe,
    Snapshot,
    Succeeded,
    Variant,
    VariantAdded,
)

TINY_CNN = Path(__file__).parent.parent / "models" / "tiny_cnn.py"

HURRY = """
# The kill tests are about what survives, not about figures: a model file runs in the worker, so it can shorten the
# timing there, and a recipe of three techniques takes seconds instead of minutes.
import sys
sys.modules["_trimtab_engine.measurements.timing"].BLOCK_SECONDS = 0.002
sys.modules["_trimtab_engine.measurements.timing"].WARM_UP_SECONDS = 0.05
sys.modules["_trimtab_engine.measurements.latency"].measure_latency.__defaults__ = (0.3,)
"""

RECIPE = """
model = "tiny_cnn.py"
batch_sizes = [1]

[[steps]]
technique = "export-onnx"
name = "onnx"

[[steps]]
technique = "quantize-fp16"
name = "half"
from = "onnx"

[[steps]]
technique = "quantize-static"
name = "static"
from = "onnx"
"""


def write_recipe(directory: Path) -> Path:
    """The model and the recipe in a directory; returns the recipe's path."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tiny_cnn.py").write_text(TINY_CNN.read_text() + HURRY)
    (directory / "recipe.toml").write_text(RECIPE)
    return directory / "recipe.toml"


async def start(client: EngineClient, recipe: Path) -> RecipeRun:
    """Ask for the recipe to be run."""
    accepted = await client.request(RunRecipe(request=0, path=str(recipe)))
    assert isinstance(accepted, RunAccepted)
    return accepted.run


async def run_to_its_end(client: EngineClient, recipe: Path) -> None:
    """Run the recipe; every step succeeds (or was done already)."""
    run = await start(client, recipe)
    state = await until(client, lambda state: find(state, run).finished is not None, 3 * PATIENCE)
    ended = find(state, run)
    assert ended.error is None, ended
    assert [step.status for step in ended.steps] == ["succeeded"] * 3, ended.steps


def find(state: Snapshot, run: RecipeRun) -> RecipeRun:
    """The run as it is now."""
    return next((one for one in state.runs if one.id == run.id), run)


class Shown:
    """Everything that was shown as done, by id, as a client saw it."""

    def __init__(self) -> None:
        self.variants: dict[str, Variant] = {}
        self.measurements: dict[str, Measurement] = {}
        self.jobs: dict[str, Job] = {}
        self.runs: dict[str, RecipeRun] = {}

    def take(self, event: object) -> None:
        """An event as it came."""
        match event:
            case VariantAdded():
                self.variants[event.variant.id] = event.variant
            case MeasurementAdded():
                self.measurements[event.measurement.id] = event.measurement
            case JobChanged() if isinstance(event.job.state, Succeeded):
                self.jobs[event.job.id] = event.job
            case RunChanged() if event.run.finished is not None:
                self.runs[event.run.id] = event.run

    async def follow(self, client: EngineClient) -> None:
        """Take every event until the connection ends."""
        async for event in client.events():
            self.take(event)

    def is_kept_in(self, state: Snapshot) -> None:
        """All of it is in a later state, unchanged."""
        for kind in ("variants", "measurements", "jobs", "runs"):
            there = {one.id: one for one in getattr(state, kind)}
            for id, record in getattr(self, kind).items():
                assert there.get(id) == record, f"{kind}: {id} was shown as done"


async def is_whole(session: Path, state: Snapshot) -> None:
    """Nothing on disk is half there, nothing in the session is unfinished, and every hash is right."""
    assert all(job.is_done for job in state.jobs), state.jobs
    assert all(run.finished is not None for run in state.runs), state.runs
    ids = {variant.id for variant in state.variants}
    assert {path.name for path in (session / "variants").iterdir()} == ids
    for variant in state.variants:
        for file in variant.files:
            data = (session / "variants" / variant.id / file.path).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size_bytes, file.sha256)
    assert all(measurement.variant in ids for measurement in state.measurements)
    await becomes(lambda: list((session / "jobs").glob("*/work")) == [])


async def clear(client: EngineClient) -> None:
    """Remove every variant but the baseline, so that the recipe has all its work before it again."""
    for variant in reversed(client.state.variants):
        if variant.parent is not None:
            await client.request(DeleteVariant(request=0, variant=variant.id))
    await until(client, lambda state: len(state.variants) == 1)


WATCHING_CLIENT = """
import asyncio, sys
from engine.client import connect
from engine.protocol import RunRecipe, encode_frame

async def main():
    client = await connect(sys.argv[1])
    events = client.events()
    await client.request(RunRecipe(request=0, path=sys.argv[2]))
    async for event in events:
        sys.stdout.buffer.write(encode_frame(event))
        sys.stdout.buffer.flush()

asyncio.run(main())
"""
"""A client in a process of its own: runs the recipe and passes on every event it sees."""

WATCHER = [sys.executable, "-c", WATCHING_CLIENT]
"""Takes the session and the recipe."""
