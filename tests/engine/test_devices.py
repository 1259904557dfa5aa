"""What names of devices mean on a machine, and which jobs may not run beside each other."""

import pytest

from engine.devices import DEVICES, devices_of, first_device, missing_device, overlap
from engine.hardware import read_processor
from engine.jobs.leases import Claim, startable
from engine.jobs.specifying import JobRequest, specify
from engine.protocol import Gpu, Hardware, InspectModel, Job, ModelSource, Queued


@pytest.mark.parametrize("name", ["cpu", "cpu,cpu", "cuda", "cuda:0", "cuda:0,cuda:12"])
def test_names_of_devices(name):
    assert DEVICES.fullmatch(name)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cpu:0", "cuda:0,cpu", "cuda,cuda:1", "cuda:0,", "cuda:1\n"])
def test_what_is_no_device(name):
    assert not DEVICES.fullmatch(name)


def test_cuda_is_every_gpu():
    assert devices_of("cuda", 3) == ("cuda:0", "cuda:1", "cuda:2")
    assert devices_of("cuda:2,cuda:0,cuda:2", 3) == ("cuda:2", "cuda:0")
    assert devices_of("cpu,cpu", 0) == ("cpu", "cpu")
    assert [first_device(name) for name in ("cuda", "cuda:1,cuda:0", "cpu")] == ["cuda:0", "cuda:1", "cpu"]


def test_a_device_that_is_not_there_is_named():
    assert missing_device("cuda:0,cuda:3", 2) == "cuda:3"
    assert missing_device("cuda", 0) == "cuda"
    assert missing_device("cuda", 1) is None
    assert missing_device("cpu,cpu", 0) is None


def test_a_job_on_all_gpus_waits_for_one_on_any_and_is_waited_for():
    assert overlap("cuda", "cuda:5")
    assert overlap("cuda:0,cuda:1", "cuda:1")
    assert not overlap("cuda:0,cuda:1", "cuda:2")
    assert not overlap("cuda", "cpu,cpu")
    assert overlap("cpu", "cpu,cpu")
    claims = [Claim(job=device, title=device, device=device, exclusive=False) for device in ("cuda:1", "cuda", "cpu")]
    started, blocked = startable([], claims)
    assert [claim.job for claim in started] == ["cuda:1", "cpu"]
    assert blocked == {"cuda": "cuda:1"}


def test_the_lease_of_several_gpus_is_told_to_the_worker(tmp_path):
    class NothingOpen:
        model = baseline = None
        directory = tmp_path
        variants: dict = {}

        class options:
            accuracy_limit, batch_sizes = 0.01, (1,)

        def work_directory(self, job):
            return tmp_path / job

    gpus = tuple(Gpu(index=index, uuid=str(index), name="some", memory_bytes=1) for index in range(2))
    hardware = Hardware(hostname="here", processor=read_processor(), gpus=gpus)
    job = Job(id="j", kind="open-model", title="t", created=0.0, state=Queued(), device="cuda")
    source = ModelSource(path="m.py", kind="python", sha256="")

    def spec(device):
        request = JobRequest(task=InspectModel(), title="t", kind="open-model", device=device, source=source)
        return specify(NothingOpen(), hardware, job, request)

    assert (spec("cuda").device, spec("cuda").devices) == ("cuda:0", ("cuda:0", "cuda:1"))
    assert (spec("cuda:1").device, spec("cuda:1").devices) == ("cuda:1", ())
