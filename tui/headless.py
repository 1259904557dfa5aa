"""Commands without a screen: each talks to the session's engine as the dashboard does, and prints.

Standard output holds the result (with `--json` one JSON object and nothing else); progress and sentences go to
standard error. Every function returns the exit status of the command line:
0 done and at least one variant passes the limit, 1 a step was refused or failed, 2 wrong usage or unreadable input,
3 every step ran but no variant is within the limit, 130 cancelled.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Literal

from engine.client import EngineClient, EngineError, connect, known_sessions
from engine.protocol import (
    ApplyTechnique,
    CancelRun,
    Command,
    Exported,
    ExportVariants,
    GetExplanation,
    GetProfile,
    GetResults,
    MeasureVariant,
    OpenModel,
    RecipeRun,
    RunAccepted,
    RunRecipe,
    Snapshot,
    StopEngine,
    Text,
)

from .progress import make_progress, printable
from .sessions import UsageError

CANCELLED = 130


async def run_recipe(session: Path, options: argparse.Namespace) -> int:
    """`trimtab run RECIPE`, `trimtab demo --headless`."""
    command = RunRecipe(
        request=0,
        path=str(Path(options.recipe).absolute()),
        trusted=options.trust,
        model=str(Path(options.model).absolute()) if options.model else None,
    )
    return await _run_and_report(session, command, options)


async def apply(session: Path, options: argparse.Namespace) -> int:
    """`trimtab apply TECHNIQUE --from VARIANT [--key value …]`."""
    command = ApplyTechnique(
        request=0,
        technique=options.technique,
        source=options.source,
        parameters=options.parameters,
        name=options.name,
        target=options.target,
    )
    return await _run_and_report(session, command, options)


async def open_model(session: Path, options: argparse.Namespace) -> int:
    """`trimtab open MODEL --headless`: make the model the session's baseline and measure it."""
    return await _run_and_report(session, open_command(options), options)


async def compare(session: Path, options: argparse.Namespace) -> int:
    """`trimtab compare`: the table of everything the session holds."""
    async with attached(session) as client:
        text = await client.request(
            GetResults(request=0, format=_format(options), command="compare", runtime=options.runtime)
        )
        assert isinstance(text, Text)
        print_result(text.text)
        return text.status


async def explain(session: Path, options: argparse.Namespace) -> int:
    """`trimtab explain VARIANT [--against VARIANT]`: from the session at once, or found out by a job first."""
    query = GetExplanation(
        request=0,
        variant=options.variant,
        against=options.against,
        runtime=options.runtime,
        format="json" if options.json else "markdown",
    )
    return await _known_or_measured(session, query, "explain", options)


async def profile(session: Path, options: argparse.Namespace) -> int:
    """`trimtab profile VARIANT`: from the session at once, or measured by a job first."""
    query = GetProfile(
        request=0, variant=options.variant, runtime=options.runtime, format="json" if options.json else "markdown"
    )
    return await _known_or_measured(session, query, "profile", options)


async def _known_or_measured(
    session: Path, query: GetExplanation | GetProfile, kind: str, options: argparse.Namespace
) -> int:
    async with attached(session) as client:
        known = await client.request(query)
        assert isinstance(known, Text)
        if not known.text or options.again:
            command = MeasureVariant(
                request=0,
                variant=options.variant,
                kinds=(kind,),
                runtimes=(options.runtime,) if options.runtime else (),
                against=getattr(options, "against", None),
            )
            accepted = await client.request(command)
            assert isinstance(accepted, RunAccepted)
            if await follow(client, accepted.run, options):
                return CANCELLED
            ended = find_run(client.state, accepted.run)
            failed = ended.error or next((step.reason for step in ended.steps if step.status != "succeeded"), None)
            if failed:
                raise EngineError(failed)
            known = await client.request(query)
            assert isinstance(known, Text)
        print_result(known.text)
        return 0


async def export(session: Path, options: argparse.Namespace) -> int:
    """`trimtab export [VARIANT …] --to DIR`."""
    async with attached(session) as client:
        command = ExportVariants(
            request=0,
            to=str(Path(options.to).absolute()),
            variants=tuple(options.variants),
            overwrite=options.overwrite,
        )
        exported = await client.request(command)
        assert isinstance(exported, Exported)
        for notice in exported.notices:
            print(printable(notice), file=sys.stderr)
        if options.json:
            text = await client.request(GetResults(request=0, format="json", command="export"))
            assert isinstance(text, Text)
            print_result(text.text)
        else:
            lines = (f"  {printable(name)}" for name in exported.files)
            print_result("\n".join([f"Exported to {printable(exported.directory)}:", *lines]))
        return 0


async def list_sessions(options: argparse.Namespace) -> int:
    """`trimtab ls`: every session this user has an engine for, or had, and those in this directory."""
    found = await known_sessions()
    if options.json:
        import json

        rows = [
            {
                "session": row.directory,
                "running": row.running,
                "pid": row.pid,
                "jobs": row.running_jobs,
                "model": row.model,
            }
            for row in found
        ]
        print_result(json.dumps({"schema": "trimtab/ls/1", "sessions": rows}))
        return 0
    if not found:
        print("No sessions. Open a model: trimtab MODEL", file=sys.stderr)
        return 0
    for row in found:
        state = f"running, {row.running_jobs or 0} job(s)" if row.running else "not running"
        print_result(f"{printable(row.directory)}  {printable(row.model or '–')}  {state}")
    return 0


async def stop(session: Path, options: argparse.Namespace) -> int:
    """`trimtab stop`: end a session's engine; with jobs running only with --cancel-jobs."""
    try:
        client = await connect(session, start=False, client="command-line")
    except EngineError as error:
        print(f"Nothing to stop: {printable(str(error))}", file=sys.stderr)
        return 0
    async with contextlib.aclosing(client):
        await client.request(StopEngine(request=0, cancel_jobs=options.cancel_jobs))
    print("Stopped. Everything is kept; opening the session starts the engine again.", file=sys.stderr)
    return 0


def open_command(options: argparse.Namespace) -> OpenModel:
    """The command that opens the model named on the command line."""
    return OpenModel(
        request=0,
        path=str(Path(options.model).absolute()),
        data=str(Path(options.data).absolute()) if options.data else None,
        calibration_data=str(Path(options.calibration_data).absolute()) if options.calibration_data else None,
        shapes=options.shapes or {},
        trusted=options.trust,
    )


@contextlib.asynccontextmanager
async def attached(session: Path):  # type: ignore[no-untyped-def]
    """A connection to the session's engine, which must be an existing session."""
    if not session.is_dir():
        raise UsageError(f"There is no session {session}. Open a model first: trimtab MODEL")
    client = await connect(session, client="command-line")
    async with contextlib.aclosing(client):
        yield client


async def _run_and_report(session: Path, command: Command, options: argparse.Namespace) -> int:
    """Send a command that starts a run, follow the run to its end, print the results."""
    client = await connect(session, client="command-line")
    async with contextlib.aclosing(client):
        try:
            accepted = await client.request(command)
        except EngineError as error:
            # Refused before anything ran: an unreadable recipe, an unknown technique, another model in this session.
            raise UsageError(str(error)) from None
        assert isinstance(accepted, RunAccepted)
        cancelled = await follow(client, accepted.run, options)
        text = await client.request(
            GetResults(request=0, format=_format(options), command=options.schema, run=accepted.run.id)
        )
        assert isinstance(text, Text)
        print_result(text.text)
        ended = find_run(client.state, accepted.run)
        if ended.error:
            print(printable(ended.error), file=sys.stderr)
        return CANCELLED if cancelled else text.status


async def follow(client: EngineClient, run: RecipeRun, options: argparse.Namespace) -> bool:
    """Show the run until it ends. The first Ctrl-C cancels it. True if the user cancelled."""
    progress = make_progress(options.quiet)
    cancel = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, cancel.set)
    follower = asyncio.create_task(_until_ended(client, run, progress))
    canceller = asyncio.create_task(cancel.wait())
    try:
        await asyncio.wait({follower, canceller}, return_when=asyncio.FIRST_COMPLETED)
        if cancel.is_set() and not follower.done():
            print("Cancelling…", file=sys.stderr)
            await client.request(CancelRun(request=0, run=run.id))
        await follower
        return cancel.is_set()
    finally:
        canceller.cancel()
        progress.end()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _until_ended(client: EngineClient, run: RecipeRun, progress) -> None:  # type: ignore[no-untyped-def]
    progress.show(client.state, find_run(client.state, run))
    if find_run(client.state, run).finished is not None:
        return
    async for _ in client.events():
        current = find_run(client.state, run)
        progress.show(client.state, current)
        if current.finished is not None:
            return
    raise EngineError("The engine ended before the run did. Run the same command again: what is done is kept.")


def find_run(snapshot: Snapshot, run: RecipeRun) -> RecipeRun:
    return next((known for known in snapshot.runs if known.id == run.id), run)


def _format(options: argparse.Namespace) -> Literal["json", "csv", "markdown"]:
    if options.json:
        return "json"
    return "csv" if getattr(options, "csv", False) else "markdown"


def print_result(text: str) -> None:
    """Write to standard output; when its reader has gone (`| head`), there is nobody to tell and nothing has failed."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()


def leave(status: int) -> None:
    """End the process at once: nothing here is worth waiting for, and a closed pipe is no error."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)
