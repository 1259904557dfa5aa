"""What each action of the registry does: ask what needs asking, then send the engine its command.

One coroutine for each action's id; `MainScreen.act` runs it after the action's reason said that it is available.
Whatever the engine answers is told as a toast; what it then does is seen in the panes.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.content import Content
from textual.screen import Screen

from engine.protocol import (
    CancelJob,
    DeleteVariant,
    DescribeLoadTest,
    Exported,
    ExportVariants,
    Field,
    GetRecipe,
    ListTechniques,
    LoadSettings,
    MeasureVariant,
    OpenModel,
    SetOptions,
    Techniques,
    Text,
    Variant,
)

from .actions import shown_load_test
from .comparison import best_variant, variant_named
from .loads import is_load_test
from .parameters import command_line
from .text import clean
from .theme import THEMES
from .view import SORTS, batch_sizes, running_jobs, unfinished_jobs

if TYPE_CHECKING:
    from .app import TrimtabApp


async def open_model(app: "TrimtabApp") -> None:
    from .screens.open_model import OpenScreen

    await app.push_screen_wait(OpenScreen(Path.cwd()))


async def send_open_model(app: "TrimtabApp", command: OpenModel) -> None:
    """Open the model that the command line named; ask about a pickle first."""
    from .screens.open_model import TRUST
    from .screens.question import Answer, QuestionScreen

    if Path(command.path).suffix in (".pt", ".pth") and not command.trusted:
        text = Content.assemble((clean(command.path, 200), "bold"), "\n", TRUST)
        answers = [Answer("no", "do not open it", "n"), Answer("yes", "open it, I trust it", "y", dangerous=True)]
        if await app.push_screen_wait(QuestionScreen("Trust this file?", text, answers)) != "yes":
            return
        import msgspec

        command = msgspec.structs.replace(command, trusted=True)
    await app.ask(command)


async def apply_technique(app: "TrimtabApp") -> None:
    from .screens.techniques import TechniqueScreen

    variant = app.main.situation().variant
    assert variant is not None
    reply = await app.ask(ListTechniques(request=0, source=variant.id))
    if isinstance(reply, Techniques):
        await app.push_screen_wait(TechniqueScreen(reply.techniques, variant))


async def measure(app: "TrimtabApp") -> None:
    variant = app.main.situation().variant
    assert variant is not None
    if await app.ask(MeasureVariant(request=0, variant=variant.id)):
        app.say(f"{variant.name} will be measured again.")


async def compare(app: "TrimtabApp") -> None:
    from .screens.compare import CompareScreen

    snapshot = app.connection.snapshot
    chosen = app.main.situation().variant
    if chosen is None or chosen.parent is None:  # the baseline beside itself says nothing
        chosen = best_variant(snapshot, app.view().batch_size) or snapshot.variants[-1]
    await app.push_screen(CompareScreen(chosen=chosen.id))


async def explain(app: "TrimtabApp") -> None:
    from .screens.explain import ExplainScreen
    from .screens.profile import ProfileScreen

    variant = app.main.situation().variant
    assert variant is not None
    parent = variant.parent  # the baseline has none: it is faster than nothing, but its time goes somewhere
    await app.push_screen(ProfileScreen(variant) if parent is None else ExplainScreen(variant, parent))


async def sensitivity(app: "TrimtabApp") -> None:
    from .screens.sensitivity import SensitivityScreen

    variant = app.main.situation().variant
    assert variant is not None
    await app.push_screen(SensitivityScreen(variant))


async def load_test(app: "TrimtabApp") -> None:
    variant = app.main.situation().variant
    assert variant is not None
    await start_load_test(app, variant, app.last_load)


async def start_load_test(
    app: "TrimtabApp", variant: Variant, before: LoadSettings | None, instead_of: Screen[None] | None = None
) -> None:
    """Ask what load, start it, and watch it; `before` is what the form begins with, `instead_of` a screen to leave."""
    from .screens.load_test import LoadTestScreen
    from .screens.load_test_form import LoadFormScreen

    reply = await app.ask(DescribeLoadTest(request=0, variant=variant.id))
    if not isinstance(reply, Techniques) or not reply.techniques:
        return
    started = await app.push_screen_wait(LoadFormScreen(reply.techniques[0], variant, before))
    if started is None:
        return
    run, app.last_load = started
    screen = LoadTestScreen(run=run, settings=app.last_load)
    if instead_of is not None and app.screen is instead_of:
        await app.switch_screen(screen)
    else:
        await app.push_screen(screen)


async def show_load_test(app: "TrimtabApp") -> None:
    from .screens.load_test import LoadTestScreen

    job = shown_load_test(app.main.situation())
    assert job is not None
    await app.push_screen(LoadTestScreen(job.id))


async def show_details(app: "TrimtabApp") -> None:
    from .screens.details import DetailsScreen

    variant = app.main.situation().variant
    assert variant is not None
    await app.push_screen(DetailsScreen(variant))


async def export(app: "TrimtabApp") -> None:
    """Write variants and reports; offered: the best one, the chosen one, or all."""
    from engine.client import EngineError

    from .connection import NotConnected
    from .screens.fill_in import FillInScreen

    snapshot = app.connection.snapshot
    chosen = app.main.situation().variant
    best = best_variant(snapshot, app.view().batch_size)
    choices = {"all variants": tuple(one.id for one in snapshot.variants)}
    if chosen is not None:
        choices = {f"chosen: {clean(chosen.name, 40)}": (chosen.id,)} | choices
    if best is not None:
        choices = {f"best: {clean(best.name, 40)}": (best.id,)} | choices
    fields = (
        Field(name="folder", kind="text", description="made if it is not there"),
        Field(name="variants", kind="choice", choices=tuple(choices), description="whose files are written"),
        Field(name="overwrite", kind="boolean", default=False, description="replace an earlier export in this folder"),
    )
    given = {"folder": f"{app.session_directory.stem}-export", "variants": next(iter(choices)), "overwrite": False}
    written: list[Exported] = []

    async def send(values: dict[str, Any]) -> str | None:
        if not values["folder"]:
            return "Name a folder to write to."
        to = str(Path(values["folder"]).expanduser().absolute())
        command = ExportVariants(request=0, to=to, variants=choices[values["variants"]], overwrite=values["overwrite"])
        try:
            reply = await app.connection.request(command)
        except (EngineError, NotConnected) as error:
            return str(error)
        if isinstance(reply, Exported):
            written.append(reply)
        return None

    text = Content("Writes the variants' files, results.json, results.csv, report.md and recipe.toml.")
    await app.push_screen_wait(FillInScreen("Export", text, fields, given, "Export", send))
    for reply in written:
        app.say(f"{len(reply.files)} files written to {reply.directory}")


async def copy(app: "TrimtabApp") -> None:
    """The command that makes the chosen variant from its parent, and the recipe that makes it from the baseline."""
    from .screens.copy_text import CopyScreen

    snapshot = app.connection.snapshot
    variant = app.main.situation().variant
    assert variant is not None
    parent = variant_named(snapshot, variant.parent)
    line = command_line(
        variant.technique or "", parent.name if parent else variant.parent or "", variant.parameters, {}, variant.name
    )
    texts = {"command line": line}
    reply = await app.ask(GetRecipe(request=0, variant=variant.id))
    if isinstance(reply, Text):
        texts["recipe"] = reply.text
    await app.push_screen_wait(CopyScreen(texts, "recipe.toml"))


async def delete_variant(app: "TrimtabApp") -> None:
    from .screens.question import Answer, QuestionScreen

    variant = app.main.situation().variant
    assert variant is not None
    text = Content.assemble(
        "Its files and figures are lost; its recipe can make it again (",
        ("y", "bold"),
        " copies it).\n",
        (clean(variant.name, 80), "bold"),
    )
    answers = [Answer("keep", "keep it", "k"), Answer("delete", "delete it", "d", dangerous=True)]
    answer = await app.push_screen_wait(QuestionScreen("Delete this variant?", text, answers))
    if answer == "delete" and await app.ask(DeleteVariant(request=0, variant=variant.id)):
        app.say(f"{variant.name} is deleted.")


async def cancel_job(app: "TrimtabApp") -> None:
    from .screens.question import Answer, QuestionScreen

    job = app.main.situation().job
    assert job is not None
    text = Content.assemble((clean(job.title or job.kind, 100), "bold"), "\nWhat it has made so far is lost.")
    answers = [Answer("keep", "let it run", "k"), Answer("cancel", "cancel it", "x", dangerous=True)]
    if await app.push_screen_wait(QuestionScreen("Cancel this job?", text, answers)) == "cancel":
        await app.ask(CancelJob(request=0, job=job.id))


async def show_log(app: "TrimtabApp") -> None:
    """The chosen job whole; of a load test its charts, from where L leads to the log."""
    from .screens.job import JobScreen
    from .screens.load_test import LoadTestScreen

    job = app.main.situation().job
    assert job is not None
    await app.push_screen(LoadTestScreen(job.id) if is_load_test(job) else JobScreen(job))


async def change_options(app: "TrimtabApp") -> None:
    """The session's options; what is left as it was is not sent."""
    from engine.client import EngineError

    from .connection import NotConnected
    from .screens.fill_in import FillInScreen

    options = app.connection.snapshot.options
    targets = ("this-machine", "cpu-vnni", "cpu-avx2", "cpu-portable", "cuda", "tensorrt")
    fields = (
        Field(
            name="accuracy_limit",
            kind="number",
            minimum=0,
            maximum=1,
            default=0.01,
            description="largest accepted drop, as a fraction or in %",
        ),
        Field(name="batch_sizes", kind="list", description="measured for every variant"),
        Field(name="runtimes", kind="list", optional=True, description="empty: the natural one; or e.g. openvino"),
        Field(name="target", kind="choice", choices=targets, description="where the variants are to run"),
        Field(name="device", kind="text", description="where they are measured: cpu, cuda:0"),
    )
    given: dict[str, Any] = {field.name: getattr(options, field.name) for field in fields}
    given["accuracy_limit"] = options.accuracy_limit

    async def send(values: dict[str, Any]) -> str | None:
        sizes = values["batch_sizes"] or []
        if not all(isinstance(size, int) and size >= 1 for size in sizes) or not sizes:
            return "Batch sizes are whole numbers from 1, for example 1 8."
        try:
            await app.connection.request(
                SetOptions(
                    request=0,
                    accuracy_limit=values["accuracy_limit"],
                    batch_sizes=tuple(sizes),
                    runtimes=tuple(str(one) for one in values["runtimes"] or ()),
                    target=values["target"],
                    device=values["device"] or "cpu",
                )
            )
        except (EngineError, NotConnected) as error:
            return str(error)
        return None

    text = Content("They hold for what is measured from now on; a new accuracy limit judges everything again.")
    await app.push_screen_wait(FillInScreen("Options", text, fields, given, "Save", send))


async def restart(app: "TrimtabApp") -> None:
    app.connection.restart()


async def next_batch_size(app: "TrimtabApp") -> None:
    offered = batch_sizes(app.connection.snapshot)
    now = app.view().batch_size
    if offered:
        position = offered.index(now) + 1 if now in offered else 0
        app.choose(batch_size=offered[position % len(offered)])


async def next_sort(app: "TrimtabApp") -> None:
    now = app.view().sort
    app.choose(sort=SORTS[(SORTS.index(now) + 1) % len(SORTS)])


async def filter(app: "TrimtabApp") -> None:
    app.main.open_filter()


async def pane_1(app: "TrimtabApp") -> None:
    app.main.go_to("1")


async def pane_2(app: "TrimtabApp") -> None:
    app.main.go_to("2")


async def pane_3(app: "TrimtabApp") -> None:
    app.main.go_to("3")


async def pane_4(app: "TrimtabApp") -> None:
    app.main.go_to("4")


async def next_theme(app: "TrimtabApp") -> None:
    names = [theme.name for theme in THEMES]
    position = names.index(app.theme) + 1 if app.theme in names else 0
    app.theme = names[position % len(names)]


async def show_help(app: "TrimtabApp") -> None:
    from .screens.help import HelpScreen

    await app.push_screen(HelpScreen(app.main.situation()))


async def open_palette(app: "TrimtabApp") -> None:
    app.action_command_palette()


async def quit(app: "TrimtabApp") -> None:
    """Leave. With jobs unfinished: leave them running, cancel them, or stay."""
    from .screens.question import Answer, QuestionScreen

    jobs = unfinished_jobs(app.connection.snapshot)
    if jobs and app.connection.link == "connected":
        running = running_jobs(app.connection.snapshot)
        shown = running[0] if running else jobs[0]
        waiting = len(jobs) - len(running)
        more = f" and {waiting} waiting" if waiting else ""
        text = Content.assemble(
            (clean(shown.title or shown.kind, 80), "bold"),
            f": {len(running)} running{more}.\n",
            "They can go on without the dashboard: the next `trimtab` in this session shows them again.",
        )
        answers = [
            Answer("leave", "leave it running", "l"),
            Answer("cancel", "cancel and quit", "x", dangerous=True),
            Answer("stay", "stay", "s"),
        ]
        answer = await app.push_screen_wait(QuestionScreen("A job is running", text, answers))
        if answer in (None, "stay"):
            return
        if answer == "cancel":
            for job in jobs:
                await app.ask(CancelJob(request=0, job=job.id), quiet=True)
    await app.connection.close()
    app.exit()
