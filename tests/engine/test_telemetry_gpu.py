"""GPUs as telemetry sees them, through the real nvidia-ml-py and a small C library that stands for the driver.

Each scenario runs in its own process, because the binding keeps the first library it loads: there it gets
`gpus(...)` to set what the driver answers, `wait(seconds)` to let time pass, and prints what it saw as JSON.
"""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

HEALTHY = {
    "serial": 100,
    "capability": 90,
    "utilisation": 61,
    "memory_total": 80 * 2**30,
    "memory_used": 12 * 2**30,
    "power": 312_000,
    "power_limit": 700_000,
    "energy": 5_000_000,
    "temperature": 54,
    "sm_clock": 1980,
    "memory_clock": 2619,
    "throttle": 0,
    "mig": 0,
    "processes": 1,
    "process.4711": 10 * 2**30,
    "process.12": 2**30,
    "gpm": 1,
    "gpm.3": 42.0,
    "gpm.5": 30.5,
    "gpm.10": 77.0,
}

PRELUDE = """
import json, os, sys
import msgspec
from engine.telemetry import Telemetry, read_hardware

HEALTHY = json.loads(os.environ["HEALTHY"])
now = [1000.0]

def wait(seconds):
    now[0] += seconds

def gpus(*figures, init=0):
    lines = [f"init {init}", f"gpus {len(figures)}"]
    for index, gpu in enumerate(figures):
        lines += [f"gpu{index}.{key} {value}" for key, value in gpu.items()]
    path = os.environ["FAKE_NVML_STATE"]
    with open(path + ".new", "w") as file:
        file.write("\\n".join(lines) + "\\n")
    os.rename(path + ".new", path)

def telemetry():
    return Telemetry(clock=lambda: now[0])

def without(*names, **changed):
    return {k: v for k, v in HEALTHY.items() if k not in names} | changed

def show(**facts):
    print(json.dumps(msgspec.to_builtins(facts)))
"""


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a freshly built libnvidia-ml.so.1."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    directory = tmp_path_factory.mktemp("driver")
    library = directory / "libnvidia-ml.so.1"
    source = HERE / "fake_nvml.c"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run([compiler, *options, "-o", library, source], check=True)
    return directory


def run(scenario: str, library: Path, tmp_path: Path) -> dict[str, Any]:
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(library),
        "FAKE_NVML_STATE": str(tmp_path / "state"),
        "HEALTHY": json.dumps(HEALTHY),
        "PYTHONPATH": str(HERE.parents[1]),
    }
    program = PRELUDE + textwrap.dedent(scenario)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_machine_without_a_driver_is_calm(tmp_path: Path) -> None:
    seen = run(
        "t = telemetry(); h = read_hardware();"
        "show(hardware=h, status=h.gpu_status, sample=t.sample(), later=t.sample()); t.close()",
        tmp_path,
        tmp_path,
    )
    assert seen["status"] == "no NVIDIA GPU"
    assert "gpus" not in seen["hardware"]
    assert "gpus" not in seen["sample"]
    assert "gpus" not in seen["later"]


def test_two_gpus_show_every_figure(driver: Path, tmp_path: Path) -> None:
    seen = run(
        """
        gpus(HEALTHY, without(serial=101, utilisation=0, throttle=0x44))
        t = telemetry()
        first = t.sample()
        wait(0.5)
        show(hardware=read_hardware(), first=first, second=t.sample(job="j1"))
        """,
        driver,
        tmp_path,
    )
    hardware = seen["hardware"]
    assert hardware["driver"] == "580.00.fake"
    assert hardware["gpu_status"] == "2 NVIDIA GPUs"
    assert hardware["gpus"][1] == {
        "index": 1,
        "uuid": "GPU-fake-101",
        "name": "NVIDIA Fake 9000",
        "memory_bytes": 80 * 2**30,
        "power_limit_w": 700.0,
        "compute_capability": "9.0",
    }
    one, two = seen["second"]["gpus"]
    assert one == {
        "index": 0,
        "utilisation": 0.61,
        "memory_used_bytes": 12 * 2**30,
        "memory_total_bytes": 80 * 2**30,
        "power_w": 312.0,
        "temperature_c": 54.0,
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "processes": [[4711, 10 * 2**30], [12, 2**30]],
        "energy_j": 5000.0,
        "sm_occupancy": 0.42,
        "tensor_activity": 0.305,
        "memory_bandwidth": 0.77,
    }
    assert two["utilisation"] == 0.0
    assert two["throttle"] == ["power cap", "hardware thermal slowdown"]
    assert seen["second"]["job"] == "j1"
    assert "sm_occupancy" not in seen["first"]["gpus"][0]  # counters compare two samples


def test_what_is_not_supported_or_not_permitted_is_unknown_and_never_zero(driver: Path, tmp_path: Path) -> None:
    seen = run(
        """
        gpus(without("power", "memory_clock", "gpm", "processes", **{"temperature.error": 4, "process.4711": -1}))
        t = telemetry()
        first = t.sample().gpus[0]
        gpus(HEALTHY)
        soon = t.sample().gpus[0]
        wait(61)
        show(first=first, soon=soon, later=t.sample().gpus[0])
        """,
        driver,
        tmp_path,
    )
    first = seen["first"]
    assert first["utilisation"] == 0.61
    assert not {"power_w", "temperature_c", "memory_clock_mhz", "processes", "sm_occupancy", "status"} & set(first)
    assert "temperature_c" not in seen["soon"]  # a refusal is not asked about at every sample
    assert seen["later"]["temperature_c"] == 54.0  # the administrator gave the permission meanwhile
    assert "power_w" not in seen["later"]  # what the board can not do is never asked again


def test_a_process_whose_memory_the_driver_hides_is_still_listed(driver: Path, tmp_path: Path) -> None:
    seen = run(
        """
        gpus(without(**{"process.4711": -1}))
        show(gpu=telemetry().sample().gpus[0])
        """,
        driver,
        tmp_path,
    )
    assert seen["gpu"]["processes"] == [[12, 2**30], [4711, None]]


def test_no_permission_for_a_gpu_at_all_is_said_in_words(driver: Path, tmp_path: Path) -> None:
    seen = run(
        """
        gpus(HEALTHY, without(serial=101, error=4))
        t = telemetry()
        show(gpus=t.sample().gpus, hardware=read_hardware())
        """,
        driver,
        tmp_path,
    )
    assert seen["gpus"][0]["utilisation"] == 0.61
    assert seen["gpus"][1] == {"index": 1, "status": "no permission to read the GPU"}
    assert len(seen["hardware"]["gpus"]) == 2


def test_a_gpu_lost_in_the_middle_keeps_its_place_and_comes_back(driver: Path, tmp_path: Path) -> None:
    seen = run(
        """
        two = without(serial=101)
        gpus(HEALTHY, two)
        t = telemetry()
        t.sample()
        gpus(HEALTHY | {"error": 15}, two)
        lost = t.sample()
        wait(6)
        gpus(two)  # after a moment the driver has only one left, and numbers it anew
        renumbered = t.sample()
        gpus(HEALTHY, two)
        wait(11)  # every attempt that fails doubles the wait for the next
        show(lost=lost, renumbered=renumbered, back=t.sample())
        """,
        driver,
        tmp_path,
    )
    assert seen["lost"]["gpus"][0]["status"].startswith("GPU is lost")
    assert "utilisation" not in seen["lost"]["gpus"][0]
    assert seen["lost"]["gpus"][1]["utilisation"] == 0.61
    gone, stays = seen["renumbered"]["gpus"]
    assert gone["index"] == 0
    assert gone["status"].startswith("GPU is lost")
    assert (stays["index"], stays["utilisation"]) == (1, 0.61)
    assert [gpu["utilisation"] for gpu in seen["back"]["gpus"]] == [0.61, 0.61]


def test_a_driver_reset_in_the_middle_is_survived(driver: Path, tmp_path: Path) -> None:
    seen = run(
        """
        gpus(HEALTHY)
        t = telemetry()
        t.sample()
        gpus(HEALTHY, init=9)
        away = [t.sample()]
        for _ in range(4):
            wait(3)
            away.append(t.sample())
        gpus(HEALTHY)
        wait(60)
        show(away=away, back=t.sample())
        """,
        driver,
        tmp_path,
    )
    for sample in seen["away"]:
        assert sample["gpus"] == [{"index": 0, "status": "the NVIDIA driver is not loaded"}]
    assert seen["back"]["gpus"][0]["utilisation"] == 0.61


@pytest.mark.parametrize(
    ("code", "words"),
    [(18, "NVIDIA driver and library versions differ: reboot the machine"), (9, "the NVIDIA driver is not loaded")],
)
def test_a_driver_that_does_not_start_is_one_sentence(code: int, words: str, driver: Path, tmp_path: Path) -> None:
    seen = run(
        f"""
        gpus(HEALTHY, init={code})
        t = telemetry()
        none = t.sample()
        hardware = read_hardware()
        gpus(HEALTHY)
        wait(6)
        show(hardware=hardware, none=none, repaired=t.sample())
        """,
        driver,
        tmp_path,
    )
    assert seen["hardware"]["gpu_status"] == words
    assert "gpus" not in seen["none"]
    assert seen["repaired"]["gpus"][0]["utilisation"] == 0.61


def test_a_gpu_split_into_instances_says_why_there_is_no_utilisation(driver: Path, tmp_path: Path) -> None:
    seen = run("gpus(without('utilisation', mig=1)); show(gpu=telemetry().sample().gpus[0])", driver, tmp_path)
    assert "utilisation" not in seen["gpu"]
    assert seen["gpu"]["power_w"] == 312.0
    assert "MIG" in seen["gpu"]["status"]


def test_the_process_list_is_read_every_five_seconds_only(driver: Path, tmp_path: Path) -> None:
    seen = run(
        """
        gpus(HEALTHY)
        t = telemetry()
        first = t.sample()
        gpus(HEALTHY | {"process.99": 5, "utilisation": 7})
        wait(1)
        soon = t.sample()
        wait(5)
        show(first=first, soon=soon, later=t.sample())
        """,
        driver,
        tmp_path,
    )
    assert seen["soon"]["gpus"][0]["utilisation"] == 0.07
    assert seen["soon"]["gpus"][0]["processes"] == seen["first"]["gpus"][0]["processes"]
    assert [99, 5] in seen["later"]["gpus"][0]["processes"]


def test_counters_are_never_compared_over_a_long_gap(driver: Path, tmp_path: Path) -> None:
    seen = run(
        """
        gpus(HEALTHY)
        t = telemetry()
        t.sample()
        wait(3600)
        stale = t.sample().gpus[0]
        wait(0.5)
        fresh = t.sample().gpus[0]
        t.detailed = False
        wait(0.5)
        show(stale=stale, fresh=fresh, plain=t.sample().gpus[0])
        """,
        driver,
        tmp_path,
    )
    assert "sm_occupancy" not in seen["stale"]
    assert seen["fresh"]["sm_occupancy"] == 0.42
    assert "sm_occupancy" not in seen["plain"]


def test_an_idle_counter_that_is_no_number_is_unknown(driver: Path, tmp_path: Path) -> None:
    seen = run(
        """
        gpus(HEALTHY | {"gpm.5": "nan"})
        t = telemetry()
        t.sample()
        wait(0.5)
        show(gpu=t.sample().gpus[0])
        """,
        driver,
        tmp_path,
    )
    assert "tensor_activity" not in seen["gpu"]
    assert seen["gpu"]["memory_bandwidth"] == 0.77


def test_closing_frees_the_library_and_a_later_sample_opens_it_again(driver: Path, tmp_path: Path) -> None:
    seen = run(
        """
        gpus(HEALTHY, HEALTHY | {"serial": 101})
        t = telemetry()
        for _ in range(40):  # the library has room for two counters a GPU: a leak would show as "unknown"
            t.sample(); wait(0.5); last = t.sample(); t.close(); t.close()
        show(last=last)
        """,
        driver,
        tmp_path,
    )
    assert [gpu["sm_occupancy"] for gpu in seen["last"]["gpus"]] == [0.42, 0.42]


LOAD_TEST = """
import threading
import time
from types import SimpleNamespace

import numpy as np
from engine.batching import BatchPolicy
from engine.measurements.load_test.generator import LoadGenerator
from engine.measurements.load_test.live import LiveTest
from engine.measurements.load_test.request import Load
from engine.measurements.load_test.summary import summarise
from engine.measurements.load_test.target import BatcherTarget
from engine.protocol import LoadSettings

def use_of(gpu):
    '''Of a load of 200 requests/s while the GPU draws 400 W; `gpu`: what the driver answers after so many seconds.'''
    ended, began = threading.Event(), time.monotonic()
    gpus(gpu(0.0))

    def go_on():
        while not ended.wait(0.02):
            gpus(gpu(time.monotonic() - began))

    thread = threading.Thread(target=go_on)
    thread.start()
    ticks = []
    job = SimpleNamespace(spec=SimpleNamespace(device="cuda:0"), send=ticks.append)
    stage = SimpleNamespace(job=job, telemetry=Telemetry())
    load = Load(arrivals="constant", rate=200.0, seconds=3.0, warm_up_seconds=0.5)
    settings = LoadSettings(arrivals="constant", rate=200.0, seconds=3.0, warm_up_seconds=0.5)
    target = BatcherTarget(lambda inputs: {"y": inputs["x"]}, BatchPolicy(max_wait_ms=0.0))
    generator = LoadGenerator(target, [{"x": np.ones((1, 2), np.float32)}], load)
    live = LiveTest(stage, settings, target, generator, "")
    record = live.run()
    ended.set()
    thread.join()
    summary = summarise(record, load, generator.sending_ended)
    stage.telemetry.close()
    return {"use": live.use(), "per_s": summary.achieved_per_s, "ticked": ticks[-2].tick.power_w}
"""


@pytest.mark.parametrize(
    "gpu",
    [
        "without(power=400_000, energy=int(5e6 + 400_000 * seconds))",
        'without("energy", power=400_000)',
    ],
    ids=["an energy counter", "power only"],
)
def test_the_energy_of_a_thousand_requests_is_what_the_gpu_drew_while_they_ran(
    driver: Path, tmp_path: Path, gpu: str
) -> None:
    seen = run(f"{LOAD_TEST}\nshow(**use_of(lambda seconds: {gpu}))", driver, tmp_path)
    use = seen["use"]
    assert seen["per_s"] == pytest.approx(200, rel=0.05)
    assert use["power_w"] == seen["ticked"] == 400.0
    assert use["gpu_memory_bytes"] == 12 * 2**30
    assert use["energy_j"] == pytest.approx(400 * 2.5, rel=0.25)  # of the measured part; the first tick is a while in
    assert use["energy_per_1000_requests_j"] == pytest.approx(400 / seen["per_s"] * 1000, rel=0.1)
