"""What a run's networks answered, kept beside it, and the figures that are drawn from it."""

from pathlib import Path

import numpy as np
import pytest
import torch

import distill
import harness
from distill.analysis.observed import images_in, read_observed
from distill.run.observe import answers_of, observe_run
from distill.run.parts import build_data

KD = ("distiller=kd", *harness.RANDOM_TEACHER, "recipe.epochs=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    harness.execute(harness.configure(*harness.SMALL, *KD), folder)
    return folder


def test_answers_are_those_of_the_deployed_student_by_image(run: Path) -> None:
    found = read_observed(observe_run(run))
    data = build_data(harness.configure(*harness.SMALL, *KD))
    student = distill.load(run)
    batches = list(data.test_dataloader())
    with torch.no_grad():
        outputs = [student(batch.images) for batch in batches]
    order = torch.cat([batch.index for batch in batches]).argsort()
    logits = torch.cat([output.logits for output in outputs])[order].numpy()
    pooled = torch.cat([output.pooled for output in outputs])[order].numpy()
    labels = torch.cat([batch.labels for batch in batches])[order].numpy()
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.student.logits, logits, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(found.student.features, pooled, rtol=2e-3, atol=2e-3)
    assert found.teacher is not None
    assert found.teacher.logits.shape == logits.shape
    assert np.abs(found.teacher.logits - logits).max() > 0.1


def test_asking_changes_nothing_in_the_network_and_stops_at_the_limit(run: Path) -> None:
    data = build_data(harness.configure(*harness.SMALL, *KD))
    network = distill.load(run).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = answers_of(network, data.test_dataloader(), device=torch.device("cpu"), precision="32-true", limit=50)
    assert len(found["labels"]) == len(found["features"]) == 50
    assert not found["logits"].requires_grad
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


def test_figures_4_and_6_ask_once_and_draw_from_what_is_kept(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = harness.script("figures")
    kept = run / "features.safetensors"
    kept.unlink(missing_ok=True)
    for figure, limit in (("figure6", "100"), ("figure4", "60")):
        path = tmp_path / f"{figure}.png"
        assert script.main([figure, str(run), "--limit", limit, "--output", str(path)]) == 0
        assert path.stat().st_size > 5000
        asked = "asking the networks" in capsys.readouterr().err
        assert asked == (figure == "figure6")
    assert images_in(kept) == 100
    assert script.main(["figure6", str(run), "--limit", "150", "--output", str(tmp_path / "x.png")]) == 0
    assert images_in(kept) == 150
