"""Every sample network has an INT8 variant that answers as its parent does and keeps the accuracy limit."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]

SAMPLES = Path(__file__).parents[2] / "sample_models"

RECIPE = """
model = {model!r}
accuracy_limit = 0.01
batch_sizes = [8]

[[steps]]
technique = "export-onnx"

[[steps]]
technique = "{technique}"
name = "int8"
"""

LEAST_COSINE = 0.99
"""To the graph it was made from."""


@pytest.mark.parametrize(
    ("sample", "technique"),
    [
        ("residual_cnn", "quantize-static"),
        ("vision_transformer", "quantize-static"),
        ("lstm", "quantize-dynamic"),
    ],
)
def test_a_sample_has_int8_within_the_limit(shell, sample, technique):
    recipe = shell.directory / "recipe.toml"
    recipe.write_text(RECIPE.format(model=str(SAMPLES / f"{sample}.py"), technique=technique))
    session = shell.directory / f"{sample}.trimtab"
    result = shell.json("run", str(recipe), "--session", str(session), timeout=900)
    made = [one for one in result["variants"] if one["technique"] == technique]
    judged = [
        (one["name"], one["changed"]["figures"]["cosine"], one["accuracy"]["verdict"], one["speedup"]["ratio"])
        for one in made
    ]
    assert any(cosine >= LEAST_COSINE and verdict == "PASS" for _, cosine, verdict, _ in judged), judged
    for changed in (one["changed"] for one in made):
        assert changed["figures"]["quantized_weight_share"] >= 0.9 or "only a part" in changed["summary"]
    assert all(one["warning"] is None for one in made), "made for and measured on this machine"
