"""A layer called `conv[/]x` with a clipboard escape in it harms neither the terminal nor an exported file."""

import json

import pytest

from tests.end_to_end.conftest import REPOSITORY

pytestmark = pytest.mark.timeout(600)


def test_no_escape_reaches_the_terminal_or_an_export(shell):
    source = REPOSITORY / "tests" / "models" / "hostile_names.py"
    (shell.directory / "hostile_names.py").write_text(source.read_text())
    shell.json("open", "hostile_names.py", "--headless", status=0)
    for technique in ("export-onnx", "quantize-static"):
        done = shell.trimtab("apply", technique, "--from", "baseline" if technique == "export-onnx" else "export-onnx")
        assert "\x1b" not in done.stdout + done.stderr
        assert "\x07" not in done.stdout + done.stderr
    done = shell.trimtab("export", "quantize-static", "--to", "release")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    release = shell.directory / "release"
    for name in ("results.csv", "report.md", "recipe.toml"):
        text = (release / name).read_text()
        assert "\x1b" not in text, name
        assert "\x07" not in text, name
    for row in (release / "results.csv").read_text().splitlines():
        assert not any(cell.strip().strip('"').startswith("=") for cell in row.split(","))
    raw = (release / "results.json").read_text()
    assert "\x1b" not in raw
    json.loads(raw)
