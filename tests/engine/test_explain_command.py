"""A client asks why: the engine runs a job once, keeps the answer with the session, and gives it at once afterwards."""

import json
from pathlib import Path

from engines import until, write_model

from engine.client import connect
from engine.protocol import (
    ApplyTechnique,
    Explanation,
    GetExplanation,
    GetProfile,
    MeasureVariant,
    OpenModel,
    Profile,
    RunAccepted,
    Snapshot,
    StopEngine,
    Text,
)


def ended(state: Snapshot, accepted: object) -> bool:
    assert isinstance(accepted, RunAccepted)
    return any(run.id == accepted.run.id and run.finished is not None for run in state.runs)


async def test_the_answer_is_kept_with_the_session(session: Path, tmp_path: Path) -> None:
    client = await connect(session, client="test")
    for command in (
        OpenModel(request=0, path=str(write_model(tmp_path)), measure=False),
        ApplyTechnique(request=0, technique="export-onnx", source="baseline", name="onnx", measure=False),
    ):
        accepted = await client.request(command)
        await until(client, lambda state, accepted=accepted: ended(state, accepted))
    question = GetExplanation(request=0, variant="onnx")
    unknown = await client.request(question)
    assert isinstance(unknown, Text)
    assert unknown.text == ""

    accepted = await client.request(MeasureVariant(request=0, variant="onnx", kinds=("profile", "explain")))
    state = await until(client, lambda state: ended(state, accepted))
    assert [type(one) for one in state.measurements] == [Profile, Explanation]
    assert not any("USDT" in path.read_text() for path in session.glob("jobs/*/log.txt"))  # PyTorch's profiler's
    (job,) = (job for job in state.jobs if job.kind == "explain")
    names = {one.id: one.name for one in state.variants}
    assert (names[job.variant], names[job.against]) == ("onnx", "baseline")
    answer = await client.request(question)
    assert isinstance(answer, Text)
    await client.request(StopEngine(request=0))
    await client.aclose()

    again = await connect(session, client="test")
    try:
        kept = await again.request(question)
        assert kept == answer
        content = json.loads(answer.text)
        assert {"variant", "against", "cause", "operators", "unfused", "missing_features"} <= set(content)
        assert (content["variant"]["name"], content["against"]["name"]) == ("onnx", "baseline")
        assert {row["type"] for row in content["operators"]} >= {"Gemm", "Linear"}
        profile = await again.request(GetProfile(request=0, variant="onnx"))
        assert isinstance(profile, Text)
        operators = json.loads(profile.text)["operators"]
        assert {node for one in operators for node in one["nodes"]}
        people = await again.request(GetExplanation(request=0, variant="onnx", format="markdown"))
        assert isinstance(people, Text)
        assert content["cause"] in people.text
    finally:
        await again.aclose()
