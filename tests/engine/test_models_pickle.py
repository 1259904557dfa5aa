"""A pickled module opens only for a user who said that they trust it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from opened_models import baseline_of, opened, refusal

from engine.models import ModelError

DATA = {"x": np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32), "labels": np.zeros(40, int)}


class Attack:
    """Runs code when it is unpickled, as a hostile file would."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    torch.save(torch.nn.Sequential(torch.nn.Linear(6, 3)), tmp_path / "net.pt")
    return tmp_path / "net.pt"


@pytest.fixture
def data(tmp_path: Path) -> str:
    np.savez(tmp_path / "data.npz", **DATA)
    return str(tmp_path / "data.npz")


def test_an_untrusted_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save(Attack(tmp_path / "was-here"), tmp_path / "net.pt")
    text = refusal(tmp_path / "net.pt")
    assert "opening it runs code from the file with your rights" in text
    assert "--trust" in text
    assert not (tmp_path / "was-here").exists()


def test_a_trusted_module_opens_with_its_data(network: Path, data: str) -> None:
    model = opened(network, trusted=True, data=data)
    assert model.inputs[0].shape == ("batch", 6)
    assert model.labelled
    assert len(model.example(4)[model.input_names[0]]) == 4
    tested = sum(len(labels) for _, labels in model.test_batches(8))
    calibrated = sum(len(next(iter(batch.values()))) for batch in model.calibration_batches(8))
    assert tested + calibrated == 40


def test_its_baseline_outlives_the_users_file(network: Path, data: str, tmp_path: Path) -> None:
    model = opened(network, trusted=True, data=data)
    expected = model.call(model.module(), model.example(2))
    baseline = baseline_of(model, tmp_path)
    network.unlink()
    found = model.call(baseline.module(), model.example(2))
    assert all(np.array_equal(expected[name], found[name]) for name in expected)

    (baseline.directory / "model.pt").write_bytes(b"exchanged")
    with pytest.raises(ModelError, match="SHA-256 differs"):
        baseline.module()


def test_a_trusted_module_without_data_asks_for_some(network: Path) -> None:
    assert "--data" in refusal(network, trusted=True)


def test_weights_alone_are_told_from_a_network(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(6, 3).state_dict(), tmp_path / "net.pt")
    for trusted in (False, True):
        assert "holds weights alone, not the network" in refusal(tmp_path / "net.pt", trusted=trusted)


def test_a_torchscript_archive_opens(tmp_path: Path, data: str) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(6, 3).eval(), torch.zeros(2, 6)), str(tmp_path / "net.pt"))
    model = opened(tmp_path / "net.pt", trusted=True, data=data)
    assert model.outputs[0].shape == ("batch", 3)


def test_an_untrusted_torchscript_archive_is_not_even_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(6, 3).eval(), torch.zeros(2, 6)), str(tmp_path / "net.pt"))
    loaded = []
    monkeypatch.setattr(torch.jit, "load", lambda *arguments, **named: loaded.append(arguments))
    assert "opening it runs code" in refusal(tmp_path / "net.pt")
    assert loaded == []


def test_a_file_that_is_no_pickle_is_told(tmp_path: Path, data: str) -> None:
    (tmp_path / "net.pt").write_bytes(b"nothing of the kind")
    assert "cannot be read" in refusal(tmp_path / "net.pt", trusted=True, data=data)


def test_a_class_that_is_not_there_is_told(tmp_path: Path, data: str) -> None:
    (tmp_path / "lost.py").write_text("import torch\nclass Net(torch.nn.Linear): pass\n")
    code = "import sys; sys.path.insert(0, '.'); import lost, torch; torch.save(lost.Net(6, 3), 'net.pt')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert opened(tmp_path / "net.pt", trusted=True, data=data).outputs[0].shape == ("batch", 3)
    sys.modules.pop("lost")
    (tmp_path / "lost.py").unlink()
    assert "needs the module 'lost'" in refusal(tmp_path / "net.pt", trusted=True, data=data)
