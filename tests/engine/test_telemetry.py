"""CPU and memory as telemetry sees them, and what its import may not bring with it."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from engine.protocol import TelemetrySample
from engine.telemetry import Telemetry, find_memory_group, read_hardware


def test_the_first_sample_does_not_invent_a_cpu_figure() -> None:
    telemetry = Telemetry(clock=lambda: 5.0)
    sample = telemetry.sample()
    assert sample.cpu is None
    assert sample.cores == ()
    assert sample.memory_total_bytes is not None
    assert 0 < sample.memory_used_bytes < sample.memory_total_bytes  # type: ignore[operator]
    telemetry.close()


def test_a_busy_core_shows_also_when_another_thread_asks() -> None:
    telemetry = Telemetry()
    deadline = time.monotonic() + 20
    share = 0.0
    samples: list[TelemetrySample] = []
    while share < 0.5 and time.monotonic() < deadline:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            sum(range(2000))
        samples.clear()
        thread = threading.Thread(target=lambda: samples.append(telemetry.sample()))
        thread.start()
        thread.join()
        share = max(samples[0].cores)
    assert share >= 0.5
    assert len(samples[0].cores) == psutil.cpu_count()
    assert samples[0].cpu == sum(samples[0].cores) / len(samples[0].cores)
    telemetry.close()


def test_asking_twice_at_once_gives_the_same_cpu_figures() -> None:
    now = [0.0]
    telemetry = Telemetry(clock=lambda: now[0])
    time.sleep(0.15)  # the kernel's counters must move: there is nothing to wait for but time
    now[0] = 1.0
    first = telemetry.sample()
    now[0] = 1.01
    assert telemetry.sample().cores == first.cores != ()


def test_hardware_names_this_machine() -> None:
    hardware = read_hardware()
    assert hardware.processor.logical_cores == psutil.cpu_count()
    assert hardware.hostname
    assert hardware.gpu_status


def groups(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for path, text in files.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_the_tightest_limit_above_the_process_counts(tmp_path: Path) -> None:
    root = groups(
        tmp_path,
        "0::/user.slice/job.scope\n",
        {
            "user.slice/memory.max": "4000\n",
            "user.slice/memory.current": "3000\n",
            "user.slice/memory.stat": "anon 1000\ninactive_file 500\nactive_file 9\n",
            "user.slice/job.scope/memory.max": "max\n",
            "user.slice/job.scope/memory.current": "7\n",
        },
    )
    group = find_memory_group(root)
    assert group is not None
    assert group.directory.name == "user.slice"
    assert group.read() == (2500, 4000)


def test_a_container_that_sees_its_group_at_the_top_is_understood(tmp_path: Path) -> None:
    root = groups(
        tmp_path,
        "3:cpu:/x\n4:memory:/docker/abc\n0::/\n",
        {
            "memory/memory.limit_in_bytes": "9000\n",
            "memory/memory.usage_in_bytes": "800\n",
            "memory/memory.stat": "inactive_file 5\ntotal_inactive_file 100\n",
        },
    )
    group = find_memory_group(root)
    assert group is not None
    assert group.read() == (700, 9000)


def test_no_limit_is_no_group(tmp_path: Path) -> None:
    assert find_memory_group(groups(tmp_path, "0::/\n", {"memory.max": "max\n"})) is None
    assert find_memory_group(tmp_path / "nowhere") is None


def test_importing_and_sampling_brings_neither_torch_nor_numpy() -> None:
    program = (
        "import sys; from engine.telemetry import Telemetry; t = Telemetry(); t.sample(); t.close();"
        "bad = {'torch', 'numpy', 'onnx', 'onnxruntime', 'textual'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
