"""Small real records and files for the tests of the session, the recipes and the exports."""

from pathlib import Path

from engine.protocol import (
    Accuracy,
    Changed,
    Conditions,
    Job,
    Latency,
    Left,
    ModelInfo,
    ModelSource,
    Ratio,
    Succeeded,
    TensorSpec,
    Variant,
    VariantDraft,
)
from engine.session import Session

CONDITIONS = Conditions(runtime="onnxruntime", device="cpu", processor="avx2 vnni", threads=2)


def make_model(path: str = "/models/residual_cnn.py", **changes) -> ModelInfo:
    source = ModelSource(path=path, kind="python", sha256="ab" * 32)
    facts = {
        "name": "residual_cnn",
        "source": source,
        "inputs": (TensorSpec(name="input", dtype="float32", shape=("batch", 1, 28, 28)),),
        "outputs": (TensorSpec(name="output", dtype="float32", shape=("batch", 10)),),
        "offers": ("load_model", "example_input", "train_data", "test_data"),
        "labelled": True,
        "operators": ("Conv", "Gemm", "Relu"),
    }
    return ModelInfo(**(facts | changes))


def add_variant(
    session: Session, wanted: str, /, parent: Variant | None = None, content: bytes = b"weights", **changes
):
    """A variant with one real file, through the same steps as a job's."""
    id = session.new_id()
    work = session.work_directory(id)
    file = "model.onnx" if parent else "weights.safetensors"
    (work / file).write_bytes(content)
    format = "onnx" if parent else "pytorch"
    draft = VariantDraft(label=None, format=format, files=(file,), deployed_files=(file,))
    files = session.store_files(id, draft, work)
    facts = {
        "id": id,
        "name": session.unique_name(wanted),
        "parent": parent.id if parent else None,
        "technique": "quantize-static" if parent else None,
        "parameters": {},
        "format": format,
        "files": files,
        "size_bytes": len(content),
        "created": 1_800_000_000.0,
        "target": "cpu-vnni",
        "processor": "avx2 vnni",
        "changed": Changed(
            summary="12 of 14 nodes quantized",
            touched=("conv1",),
            left=(Left(name="fc", reason="too sensitive"),),
            figures={"quantized_weight_share": 0.97},
        )
        if parent
        else None,
        "parameter_count": 1000,
        "macs": 5000,
        "job": id,
    }
    variant = Variant(**(facts | changes))
    session.add_variant(variant)
    session.put_job(
        Job(
            id=id,
            kind=variant.technique or "open-model",
            title=wanted,
            created=1.0,
            state=Succeeded(started=1.0, finished=2.0, variants=(variant.id,)),
        )
    )
    session.discard_work(id)
    return variant


def add_latency(session: Session, variant: Variant, ratio: float, batch_size: int = 8, **changes) -> Latency:
    """A latency `ratio` times faster than a baseline of 8 ms."""
    speedup = Ratio(
        ratio=ratio,
        low=ratio * 0.97,
        high=ratio * 1.03,
        verdict="FASTER" if ratio > 1.03 else "SAME",
        against=f"baseline · pytorch · cpu · batch {batch_size}",
    )
    facts = {
        "id": session.new_id(),
        "variant": variant.id,
        "job": "j",
        "created": 2.0,
        "conditions": CONDITIONS,
        "batch_size": batch_size,
        "p50_ms": 8 / ratio,
        "p90_ms": 9 / ratio,
        "p99_ms": 10 / ratio,
        "throughput_per_s": batch_size * 1000 * ratio / 8,
        "samples": 100,
        "speedup": speedup,
    }
    latency = Latency(**(facts | changes))
    session.add_measurement(latency)
    return latency


def add_accuracy(session: Session, variant: Variant, drop: float, **changes) -> Accuracy:
    """An accuracy on 10,000 samples with an interval of ± 0.2 points, against a limit of one point."""
    high = drop + 0.002
    facts = {
        "id": session.new_id(),
        "variant": variant.id,
        "job": "j",
        "created": 2.0,
        "conditions": CONDITIONS,
        "kind": "accuracy",
        "value": 0.92 - drop,
        "samples": 10_000,
        "drop": drop,
        "low": drop - 0.002,
        "high": high,
        "limit": 0.01,
        "verdict": "PASS" if high <= 0.01 else "FAIL" if drop - 0.002 > 0.01 else "NOT ENOUGH DATA",
        "baseline_value": 0.92,
    }
    accuracy = Accuracy(**(facts | changes))
    session.add_measurement(accuracy)
    return accuracy


def is_whole(session: Session) -> list[str]:
    """What is wrong with a session as it lies on the disk; empty when nothing is."""
    wrong = session.verify()
    directories = {entry.name for entry in (session.directory / "variants").iterdir()}
    if directories != set(session.variants):
        wrong.append(f"directories {sorted(directories)}, variants {sorted(session.variants)}")
    wrong += [f"{v.name} has no parent" for v in session.variants.values() if v.parent not in {None, *session.variants}]
    wrong += [f"{m.id} measures nothing" for m in session.measurements.values() if m.variant not in session.variants]
    wrong += [f"job {job.id} is unfinished" for job in session.jobs.values() if not job.is_done]
    leftovers = [str(path) for path in Path(session.directory).rglob("*.tmp")]
    return wrong + leftovers
