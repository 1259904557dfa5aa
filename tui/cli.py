"""The `trimtab` command: reads the command line, chooses the session, opens the dashboard or runs headless.

Heavy imports are inside the branches: `trimtab --help` and the headless commands never pay for Textual.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

from .sessions import UsageError, only_session_here, session_for_model, session_for_recipe

SAMPLE_MODELS = Path(__file__).resolve().parent.parent / "sample_models"
"""Shipped beside the packages, in a checkout and in a wheel alike."""

COMMANDS = (
    "open", "run", "apply", "compare", "explain", "profile", "load-test", "steer", "serve", "export", "ls", "attach",
    "stop", "demo",
)  # fmt: skip

LOAD_FLAGS = {
    "offline": "as fast as possible: the highest throughput",
    "sweep": "try maximum batch sizes, waits and instances; name the best",
    "same-input": "send one input again and again instead of the user's data",
}
"""Options of `trimtab load-test` without a value."""

LOAD_OPTIONS = {
    "rate": ("R", "requests a second, whatever becomes of them (open loop)"),
    "concurrency": ("N", "callers, each sending when it has its answer (closed loop)"),
    "slo-p99": ("MS", "limit for p99 latency; without a load the highest rate within it is searched"),
    "seconds": (
        "S",
        "of sending, warm-up included; a search for a rate takes what a claim needs where that is longer "
        "(default: 10; a sweep's tests 4, a replay's whole trace)",
    ),
    "warm-up-seconds": ("S", "of these the first, counted for nothing (default: 1)"),
    "max-batch-size": ("B", "rows of the largest batch (default: 32)"),
    "max-wait-ms": ("W", "the oldest request waits no longer for company (default: 10)"),
    "instances": ("I", "copies of the model side by side (default: 1)"),
    "wait": ("HOW", "when-it-pays (default) or always"),
    "max-queue-size": ("N", "one more waiting request is turned away (default: 4096)"),
    "preferred-batch-sizes": ("LIST", "rows at which a batch is sent at once, such as 8,16"),
    "priority-levels": ("N", "spread the requests over so many priorities; 1 is served first (default: 1)"),
    "timeout-ms": ("MS", "how long a request may wait in the queue"),
    "rows-per-request": ("N", "samples in one request (default: 1)"),
    "arrivals": ("HOW", "poisson (default), constant, bursty or replay"),
    "burst-size": ("N", "requests that arrive together when bursty"),
    "trace": ("FILE", "one arrival time in seconds a line, for a replay"),
    "seed": ("N", "of arrivals and inputs"),
    "url": ("URL", "a running KServe v2 server, http://HOST:PORT or grpc://HOST:PORT, instead of this process"),
    "model-name": ("NAME", "what that server calls the model"),
    "sweep-batch-sizes": ("LIST", "such as 1,8,32"),
    "sweep-waits-ms": ("LIST", "such as 0,2,10"),
    "sweep-instances": ("LIST", "such as 1,2"),
}
"""Options of `trimtab load-test` with one; their values are checked where `LoadSettings` says what they may be."""

WRONG_USAGE = 2


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of the console script; ends the process with the documented exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = _dispatch(_parse(arguments))
    except UsageError as error:
        status = _complain(str(error), WRONG_USAGE, arguments)
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # whoever read standard error has gone; 128 and SIGPIPE, as of any program
        status = 141
    except Exception as error:
        from engine.client import EngineError

        if not isinstance(error, EngineError):
            raise
        status = _complain(str(error), 1, arguments)
    from .headless import leave

    leave(status)
    raise AssertionError("leave() does not return")


def _dispatch(options: argparse.Namespace) -> int:
    if options.command == "ls":
        from .headless import list_sessions

        return asyncio.run(list_sessions(options))
    if options.command in ("open", "attach", "demo") and not options.headless:
        return _dashboard(options)
    session, function = _headless(options)
    return asyncio.run(function(session, options))


def _headless(options: argparse.Namespace) -> tuple[Path, Any]:
    """The session and the coroutine function for a command without a screen."""
    from . import headless, load_testing, serving

    options.schema = options.command
    if options.command == "demo":
        options.recipe, options.model = str(SAMPLE_MODELS / "demo.toml"), None
    if options.command in ("run", "demo"):
        return session_for_recipe(options.recipe, options.session, options.model), headless.run_recipe
    if options.command == "open":
        if options.model is None:
            raise UsageError("Name the model to open: trimtab open MODEL --headless")
        options.schema = "run"
        return session_for_model(options.model, options.session), headless.open_model
    if options.command == "apply":
        options.schema = "run"
    session = Path(options.session).absolute() if options.session else only_session_here()
    functions = {
        "apply": headless.apply,
        "compare": headless.compare,
        "explain": headless.explain,
        "profile": headless.profile,
        "load-test": load_testing.load_test,
        "steer": load_testing.steer,
        "serve": serving.serve,
        "export": headless.export,
        "stop": headless.stop,
    }
    return session, functions[options.command]


def _dashboard(options: argparse.Namespace) -> int:
    """Open the dashboard; the engine is started behind it, after the first paint."""
    from . import headless
    from .app import TrimtabApp

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "The dashboard needs a terminal. Without one use the headless commands: trimtab run, apply, compare, "
            "export, or trimtab demo --headless."
        )
    if options.command == "demo":
        options.model = str(SAMPLE_MODELS / "residual_cnn.py")
    if options.command == "attach" and options.session is None and options.model is not None:
        session = Path(options.model).absolute()
    else:
        session = session_for_model(options.model, options.session)
    open_model = headless.open_command(options) if options.command != "attach" and options.model else None
    app = TrimtabApp(session, open_model=open_model)
    app.run()
    return app.return_code or 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    """The command line as options. `trimtab MODEL` is `trimtab open MODEL`. Raises UsageError."""
    words = [word for word in arguments if not word.startswith("-")]
    asks_about_trimtab = not words and bool({"-h", "--help", "--version"} & set(arguments))
    if not asks_about_trimtab and (not words or words[0] not in COMMANDS):
        arguments = ["open", *arguments]
    if "apply" in words[:1] and {"-h", "--help"} & set(arguments):
        from .headless import print_result
        from .technique_help import technique_help

        if text := technique_help(words[1:]):
            print_result(text)
            raise SystemExit(0)
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if options.command == "apply":
        options.parameters = _technique_parameters(rest)
    elif rest:
        raise UsageError(
            f"trimtab {options.command} does not know {' '.join(rest)}. See trimtab {options.command} --help."
        )
    if getattr(options, "shapes", None):
        options.shapes = _shapes(options.shapes)
    return options


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of printing and exiting, so that `--json` holds on wrong usage too."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[0].upper()}{message[1:]}. See {self.prog} --help.")


def _parser() -> argparse.ArgumentParser:
    from engine import __version__

    parser = _Parser(
        prog="trimtab",
        description="Makes neural networks fast: profile, optimise one step at a time, keep what passes the accuracy "
        "limit. `trimtab MODEL` opens the dashboard.",
    )
    parser.add_argument("--version", action="version", version=f"trimtab {__version__}")
    session = _Parser(add_help=False)
    session.add_argument("--session", metavar="DIR", help="the session (default: MODEL's stem + .trimtab, here)")
    model = _Parser(add_help=False)
    model.add_argument("--data", metavar="NPZ", help="labelled test data for an .onnx: one array per input, and labels")
    model.add_argument("--calibration-data", metavar="NPZ", help="data for calibration, without labels")
    model.add_argument("--shapes", metavar="JSON", help='open axes of an .onnx, e.g. \'{"x": ["batch", 3, 48, 320]}\'')
    model.add_argument("--trust", action="store_true", help="allow a pickled .pt: loading it runs code from the file")
    output, plain = _output(csv=True), _output(csv=False)

    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, help: str, *parents: _Parser) -> _Parser:
        return commands.add_parser(name, help=help, description=help, parents=[session, *parents], allow_abbrev=False)

    opens = add("open", "open a model (or the session here) in the dashboard", model, output)
    opens.add_argument("model", nargs="?", metavar="MODEL", help="a model file: .py, .onnx or .pt")
    opens.add_argument("--headless", action="store_true", help="no dashboard: open, measure, print")

    runs = add("run", "run the steps of a recipe", model, output)
    runs.add_argument("recipe", metavar="RECIPE", help="a TOML file")
    runs.add_argument("--model", metavar="PATH", help="use this model file instead of the recipe's")

    applies = add("apply", "apply one technique; its parameters follow as --key value", output)
    applies.add_argument("technique", metavar="TECHNIQUE", help="trimtab apply TECHNIQUE --help lists its parameters")
    applies.add_argument("--from", dest="source", default="baseline", metavar="VARIANT", help="default: baseline")
    applies.add_argument("--name", metavar="NAME", help="the new variant's name (default: the technique's tag)")
    applies.add_argument("--target", metavar="TARGET", help="this-machine, cpu-vnni, cpu-avx2, cpu-portable, …")

    compares = add("compare", "print the table of all variants", output)
    compares.add_argument("--runtime", metavar="RUNTIME", help="figures under it (default: each variant's fastest)")

    explains = add("explain", "say why a variant is, or is not, faster than another", plain)
    explains.add_argument("variant", metavar="VARIANT", help="a name, an id or best")
    explains.add_argument("--against", metavar="VARIANT", help="the other one (default: the one it was made from)")
    profiles = add("profile", "say where a variant's time goes, operator by operator", plain)
    profiles.add_argument("variant", metavar="VARIANT", help="a name, an id or best")
    for one in (explains, profiles):
        one.add_argument("--runtime", metavar="RUNTIME", help="measure under this runtime (default: the natural one)")
        one.add_argument("--again", action="store_true", help="measure anew even if the answer is known")

    loads = add("load-test", "send requests to a variant and measure throughput and tail latency", plain)
    loads.add_argument("variant", metavar="VARIANT", help="a name, an id or best")
    loads.add_argument("--runtime", metavar="RUNTIME", help="default: that of its best measurement")
    loads.add_argument("--device", metavar="DEVICE", help='"cpu", "cuda:0", … (default: the session\'s)')
    for flag, meaning in LOAD_FLAGS.items():
        loads.add_argument(f"--{flag}", action="store_true", default=None, help=meaning)
    for option, (metavar, meaning) in LOAD_OPTIONS.items():
        loads.add_argument(f"--{option}", metavar=metavar, help=meaning)
    loads.add_argument("--again", action="store_true", help="of a search: do the tests of an earlier one anew, too")
    steers = add("steer", "turn the knobs of the load test that runs, from another terminal", plain)
    steers.add_argument("--rate", type=float, metavar="R", help="requests a second")
    steers.add_argument("--concurrency", type=int, metavar="N", help="callers")
    steers.add_argument("--max-batch-size", type=int, metavar="B")
    steers.add_argument("--max-wait-ms", type=float, metavar="W")
    steers.add_argument("--instances", type=int, metavar="I")
    pauses = steers.add_mutually_exclusive_group()
    pauses.add_argument("--pause", action="store_true", help="send nothing for now")
    pauses.add_argument("--resume", action="store_true", help="go on")
    steers.add_argument("--stop", action="store_true", help="end it now and keep what was measured")

    serves = add("serve", "serve a variant to other programs: KServe v2 over HTTP and gRPC, plain JSON", plain)
    serves.add_argument("variant", metavar="VARIANT", help="a name, an id or best")
    serves.add_argument("--runtime", metavar="RUNTIME", help="default: that of its best measurement")
    serves.add_argument("--device", metavar="DEVICE", help='"cpu", "cuda:0", … (default: the session\'s)')
    serves.add_argument("--host", metavar="H", help="address to listen on (default: 127.0.0.1, this machine only)")
    serves.add_argument("--port", type=int, metavar="P", help="for HTTP (default: 8000; 0 picks a free one)")
    serves.add_argument("--grpc-port", type=int, metavar="P", help="for gRPC (default: the one after --port)")
    serves.add_argument("--max-batch-size", type=int, metavar="B", help="rows of the largest batch (default: 32)")
    serves.add_argument("--max-wait-ms", type=float, metavar="W", help="wait for company at most so long (default: 10)")
    serves.add_argument("--wait", metavar="WHEN", help="for company: when-it-pays (default) or always, as Triton does")
    serves.add_argument(
        "--preferred-batch-sizes", type=_whole_numbers, metavar="LIST", help="rows of batches sent at once, as 8,16"
    )
    serves.add_argument("--priority-levels", type=int, metavar="N", help="of requests; 1 is served first (default: 1)")
    serves.add_argument("--max-queue-size", type=int, metavar="N", help="turn away requests beyond (default: 4096)")
    serves.add_argument("--timeout-ms", type=float, metavar="T", help="longest wait in the queue (default: none)")
    serves.add_argument("--instances", type=int, metavar="I", help="copies of the model side by side (default: 1)")
    serves.add_argument("--max-request-bytes", type=int, metavar="N", help="refuse longer bodies (default: 64 MiB)")

    exports = add("export", "write variants, results, report and recipe to a directory", plain)
    exports.add_argument("variants", nargs="*", metavar="VARIANT", help="names, ids or best (default: best)")
    exports.add_argument("--to", required=True, metavar="DIR", help="where to write")
    exports.add_argument("--overwrite", action="store_true", help="replace an earlier export in DIR")

    lists = commands.add_parser("ls", help="list sessions", description="list sessions")
    lists.add_argument("--json", action="store_true", help="print one JSON object")

    attaches = add("attach", "open the dashboard on a session that exists", model)
    attaches.add_argument("model", nargs="?", metavar="SESSION", help="the session's directory")
    attaches.set_defaults(headless=False)

    stops = add("stop", "end a session's engine; everything is kept", plain)
    stops.add_argument("--cancel-jobs", action="store_true", help="even while jobs run: they are cancelled")

    demo = add("demo", "open the dashboard on a sample model", model, output)
    demo.add_argument("--headless", action="store_true", help="no dashboard: run the sample recipe and print the table")
    return parser


def _output(csv: bool) -> _Parser:
    """How to print; `csv`: the answer is the table of variants."""
    output = _Parser(add_help=False)
    shape = output.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print one JSON object")
    if csv:
        shape.add_argument("--csv", action="store_true", help="print CSV")
    shape.add_argument("--markdown", action="store_true", help="print Markdown (the default)")
    output.add_argument("--quiet", action="store_true", help="no progress on standard error")
    return output


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"whole numbers with commas between them, not {text!r}") from None


def _technique_parameters(rest: list[str]) -> dict[str, Any]:
    """`--ratio 0.3 --synthetic` → {"ratio": "0.3", "synthetic": True}; the engine checks names and values."""
    parameters: dict[str, Any] = {}
    index = 0
    while index < len(rest):
        word = rest[index]
        if not word.startswith("--"):
            raise UsageError(f"Expected --parameter VALUE, found {word!r}.")
        name, equals, value = word[2:].partition("=")
        if not equals:
            follows = rest[index + 1] if index + 1 < len(rest) else None
            if follows is None or follows.startswith("--"):
                parameters[name.replace("-", "_")] = True
                index += 1
                continue
            value = follows
            index += 1
        parameters[name.replace("-", "_")] = _value(value)
        index += 1
    return parameters


def _value(text: str) -> Any:
    """Lists are written as JSON; everything else stays text, which the engine converts."""
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            raise UsageError(f'{text} is not a list. Write it as JSON: \'["a", "b"]\'.') from None
    return text


def _shapes(text: str) -> dict[str, list[int | str]]:
    try:
        shapes = json.loads(text)
    except ValueError:
        shapes = None
    if not isinstance(shapes, dict) or not all(isinstance(shape, list) for shape in shapes.values()):
        raise UsageError('--shapes takes JSON such as \'{"x": ["batch", 3, 48, 320]}\'.')
    return shapes


def _complain(sentence: str, status: int, arguments: list[str]) -> int:
    """Say what went wrong: on standard error, or with --json as the one object on standard output."""
    from .progress import printable

    if "--json" in arguments:
        command = next((word for word in arguments if word in COMMANDS), "open")
        print(json.dumps({"schema": f"trimtab/{command}/1", "error": sentence}))
    else:
        print(f"trimtab: {printable(sentence)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
