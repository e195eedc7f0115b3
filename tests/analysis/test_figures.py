"""What is drawn: the arrays behind lines, bars, points and images, and what refuses to be drawn."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import harness
from distill.analysis.figures import correlation, embedding, style
from distill.analysis.figures.ablation import ablation_bars
from distill.analysis.figures.correlation import class_means, correlation_difference, of_class_means, of_correlations
from distill.analysis.figures.cost import accuracy_over_time
from distill.analysis.figures.curves import accuracy_curves
from distill.analysis.figures.embedding import feature_maps, named_classes
from distill.analysis.figures.search import search_trials
from distill.analysis.observed import Answers, Observed, images_in, read_observed
from distill.analysis.sheet import fill
from distill.analysis.store import find_results
from distill.analysis.table import group
from distill.errors import UserError

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "outputs" / "published"


@pytest.fixture
def drawn(monkeypatch):
    """The pictures that were saved, as objects; nothing is written."""
    figures = []
    monkeypatch.setattr(style, "save", lambda figure, path: figures.append(figure))
    return figures


def runs_of(folder):
    return find_results([folder])[0]


# ---------------------------------------------------------------------- Figure 3


def test_curves_are_means_over_seeds_with_a_band(tmp_path, write, drawn):
    write(71.0, 70.0, seed=0, curve={1: 10.0, 2: 20.0, 3: 30.0})
    write(71.0, 70.0, seed=1, curve={1: 12.0, 2: 24.0})
    write(69.0, 68.0, distiller="kd", curve={1: 5.0, 2: 50.0})
    kd, mcld = accuracy_curves(runs_of(tmp_path), "x.png")
    assert (mcld.epochs, mcld.mean, mcld.seeds) == ([1, 2], [11.0, 22.0], 2)
    assert mcld.high == pytest.approx([11 + math.sqrt(2), 22 + math.sqrt(8)])
    assert (kd.mean, kd.low, kd.high) == ([5.0, 50.0], [5.0, 50.0], [5.0, 50.0])
    axes = drawn[0].axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [kd.mean, mcld.mean]
    assert [text.get_text() for text in axes.texts] == ["kd (n=1)  50.00", "mcld (n=2)  22.00"]
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines}) == 2


def test_no_two_lines_look_alike():
    looks = [(style.COLOURS[i % 7], str(style.STYLES[i % 5])) for i in range(35)]
    assert len(set(looks)) == 35
    assert len(style.COLOURS) == 7
    assert len(style.STYLES) == 5


@pytest.mark.parametrize("places", [[1, 1, 1, 5], [3, 2, 1], [9.5, 9.6, 9.7], [0, 10]])
def test_labels_keep_their_order_and_distance(places):
    found = style.apart(places, 1.0, high=10.0)
    order = sorted(range(len(places)), key=lambda i: places[i])
    heights = [found[i] for i in order]
    assert all(b - a >= 1 - 1e-9 for a, b in itertools.pairwise(heights))
    assert max(heights) <= 10


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_all_formats_are_written_in_letters_that_stay_letters(ending, tmp_path, write):
    write(71.0, 70.0, curve={1: 10.0, 2: 20.0})
    path = tmp_path / "new" / f"x.{ending}"
    accuracy_curves(runs_of(tmp_path), path)
    content = path.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[ending])
    if ending == "svg":
        assert b"mcld  20.00" in content


# ---------------------------------------------------------------------- Figure 4


def observed(count=60, classes=10, channels=5, teacher=True, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes

    def answers():
        return Answers(
            random.normal(size=(count, classes)).astype(np.float32),
            random.normal(size=(count, channels)).astype(np.float32),
        )

    return Observed(labels, [f"kind_{i}" for i in range(classes)], answers(), answers() if teacher else None)


def test_feature_maps_draw_every_image_once_per_panel(drawn, monkeypatch):
    monkeypatch.setattr(embedding, "embed", lambda features: features[:, :2])
    one, two = observed(seed=1), observed(seed=2)
    planes = feature_maps([("kd", one), ("mcld", two)], "x.png", title="here")
    assert list(planes) == ["kd", "mcld", "teacher"]
    assert one.teacher is not None
    np.testing.assert_array_equal(planes["teacher"], one.teacher.features[:, :2])
    panel = drawn[0].axes[1]
    points = np.concatenate([np.asarray(dots.get_offsets()) for dots in panel.collections])
    np.testing.assert_array_equal(np.sort(points, axis=0), np.sort(planes["mcld"], axis=0))
    assert "mcld" in panel.get_title()
    caption = drawn[0]._supxlabel.get_text()
    assert "perplexity 30" in caption
    assert "60 test images of 10 classes, 7 of them named" in caption
    assert drawn[0].legends[0].get_texts()[0].get_text() == "kind 0"


def test_embedding_is_scikit_learns_default_and_repeats():
    from sklearn.manifold import TSNE

    features = observed().student.features
    found = embedding.embed(features)
    assert found.shape == (60, 2)
    np.testing.assert_array_equal(found, TSNE(random_state=0).fit_transform(features))


def test_named_classes_are_spread_evenly():
    np.testing.assert_array_equal(named_classes(np.arange(100)), [0, 16, 33, 50, 66, 82, 99])
    np.testing.assert_array_equal(named_classes(np.array([3, 3, 8])), [3, 8])


# ---------------------------------------------------------------------- Figure 6


def test_class_means_are_averages_over_the_images_of_each_class():
    run = observed()
    logits = run.student.logits
    slow = [[np.mean([row[k] for row, y in zip(logits, run.labels, strict=True) if y == c]) for k in range(10)]
            for c in range(10)]  # fmt: skip
    np.testing.assert_allclose(class_means(logits, run.labels), slow, rtol=1e-5)
    assert np.isnan(class_means(logits[:5], run.labels[:5])[7]).all()


def test_first_reading_is_a_third_of_the_difference_without_a_diagonal():
    run = observed()
    shifted = run.student.logits + 1.5
    difference = of_class_means(shifted, run.student.logits, run.labels)
    np.testing.assert_allclose(difference, 0.5 * (1 - np.eye(10)), atol=1e-6)


def test_second_reading_is_of_correlations_over_images():
    run = observed()
    student, teacher = run.student.logits, run.teacher.logits
    found = of_correlations(student, teacher)

    def r(x, i, j):
        a, b = x[:, i] - x[:, i].mean(), x[:, j] - x[:, j].mean()
        return (a * b).sum() / math.sqrt((a**2).sum() * (b**2).sum())

    assert found[2, 7] == pytest.approx(abs(r(student, 2, 7) - r(teacher, 2, 7)), abs=1e-6)
    # neither scale nor shift of a network's logits matters to it
    np.testing.assert_allclose(of_correlations(3 * student + 2, student), 0, atol=1e-6)


def test_both_readings_are_drawn_on_one_scale_each_and_named(drawn):
    one, two = observed(seed=1), observed(seed=2)
    found = correlation_difference([("kd", one), ("mcld", two)], "x.png", title="here")
    images = [axes for axes in drawn[0].axes if axes.images]
    arrays = [axes.images[0].get_array() for axes in images]
    wanted = [found["kd"][0], found["mcld"][0], found["kd"][1], found["mcld"][1]]
    for array, matrix in zip(arrays, wanted, strict=True):
        np.testing.assert_array_equal(array, matrix)
    scales = [axes.images[0].get_clim() for axes in images]
    assert scales[0] == scales[1] == (0.0, 1.0)
    assert scales[2] == scales[3] == (0.0, max(found["kd"][1].max(), found["mcld"][1].max()))
    labels = [axes.get_ylabel() for axes in images if axes.get_ylabel()]
    assert labels == list(correlation.READINGS)
    assert "DKD's notebook" in labels[0]
    assert "CRD" in labels[1]


def test_one_run_has_both_readings_side_by_side(drawn):
    correlation_difference([("kd", observed())], "x.png", title="here")
    assert drawn[0].get_figwidth() > drawn[0].get_figheight()


def test_figure_6_needs_teachers():
    with pytest.raises(UserError, match="none has no teacher to be compared with"):
        correlation_difference([("none", observed(teacher=False))], "x.png", title="here")


def test_observed_answers_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "features.safetensors"
    tensors = {"student.logits": np.ones((4, 3), np.float16), "labels": np.array([0, 1, 2, 0], np.int32)}
    save_file(tensors, path, {"classes": json.dumps(["a", "b", "c"])})
    assert images_in(path) == 4
    found = read_observed(path, limit=3)
    assert (found.student.logits.shape, found.student.features, found.teacher) == ((3, 3), None, None)
    assert found.classes == ["a", "b", "c"]
    np.testing.assert_array_equal(found.labels, [0, 1, 2])
    assert images_in(tmp_path / "nothing") == 0
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot be read"):
        read_observed(path)


# ---------------------------------------------------------------------- Figure 5


def speed(folder, pair="resnet56 → resnet20"):
    times = {name: {"median": m, "low": m - 1, "high": m + 2} for name, m in (("kd", 70.0), ("mcld", 90.0))}
    entry = {"pair": pair, "data": "cifar100", "batch_size": 64, "blocks": 5, "steps": 20, "device": "a CPU"}
    path = folder / "methods.json"
    path.write_text(json.dumps([{**entry, "precision": "32-true", "reference": "kd", "milliseconds": times}]))
    return path


def test_cost_is_what_the_benchmark_measured(tmp_path, write, drawn):
    write(71.0, 70.0, seed=0)
    write(73.0, 70.0, seed=1)
    write(70.0, 69.0, distiller="kd")
    write(70.5, 69.0, distiller="rld")
    costs = accuracy_over_time(runs_of(tmp_path), "x.png", speed=speed(tmp_path))
    assert [(c.label, c.milliseconds, c.low, c.high, c.top1) for c in costs] == [
        ("kd", 70.0, 69.0, 72.0, 70.0),
        ("mcld", 90.0, 89.0, 92.0, 72.0),
    ]
    assert costs[1].sd == pytest.approx(math.sqrt(2))
    axes = drawn[0].axes[0]
    assert "5 blocks of 20 steps\na CPU, 32-true" in axes.get_xlabel()
    assert [text.get_text() for text in axes.texts if text.get_visible()] == ["kd", "mcld"]


def test_a_disturbed_measurement_does_not_stretch_the_axis(tmp_path, write, drawn):
    write(71.0, 70.0)
    write(70.0, 69.0, distiller="kd")
    path = speed(tmp_path)
    accuracy_over_time(runs_of(tmp_path), "x.png", speed=path)
    path.write_text(path.read_text().replace("72.0", "7200.0"))
    accuracy_over_time(runs_of(tmp_path), "x.png", speed=path)
    whole, cut = (figure.axes[0] for figure in drawn)
    assert whole.get_xlim() == cut.get_xlim()
    assert cut.get_xlabel() == whole.get_xlabel() + "; ranges that leave the picture are cut"


def test_cost_from_the_runs_own_rate_says_so(tmp_path, write, drawn):
    write(71.0, 70.0, images_per_second=640.0)
    (cost,) = accuracy_over_time(runs_of(tmp_path), "x.png", speed=None)
    assert (cost.milliseconds, cost.low) == (100.0, None)
    assert "machines may have been shared" in drawn[0].axes[0].get_xlabel()


def test_cost_of_another_pair_is_refused(tmp_path, write):
    write(71.0, 70.0)
    with pytest.raises(UserError, match=r"no times of cifar100, resnet56 → resnet20, but of cifar100, vgg13 → vgg8"):
        accuracy_over_time(runs_of(tmp_path), "x.png", speed=speed(tmp_path, "vgg13 → vgg8"))
    (tmp_path / "methods.json").write_text("[]")
    with pytest.raises(UserError, match="holds no times per method"):
        accuracy_over_time(runs_of(tmp_path), "x.png", speed=tmp_path / "methods.json")


# ---------------------------------------------------------------------- Table 7 as bars


def test_ablation_bars_are_table_7(drawn):
    rows, _ = group(runs_of(PUBLISHED))
    bars = ablation_bars(fill(7, rows, teacher="resnet56", student="resnet20", epochs=3), "x.png")
    assert [sorted(bar.terms) for bar in bars][:3] == [[], ["instance"], ["sample"]]
    alone = "distiller.category_weight=0 distiller.ce_weight=0 distiller.sample_weight=0"
    (instance,) = (row for row in rows if row.epochs == 3 and row.variant == alone)
    assert bars[1].best == instance.best("top1").mean
    assert all(bar.printed is None for bar in bars)  # of another pair
    axes, grid = drawn[0].axes
    heights = [patch.get_height() for patch in axes.patches]
    assert heights == pytest.approx([bar.best for bar in bars if bar.best is not None])
    filled = [line.get_markerfacecolor() == "black" for line in grid.lines]
    assert [filled[i::8] for i in (0, 1, 7)] == [[False] * 3, [True, False, False], [True] * 3]


def test_ablation_sets_the_papers_beside_ours_where_that_is_fair(tmp_path, write, drawn):
    path = write(77.0, 76.0, student="resnet8x4", teacher="resnet32x4")
    path.write_text(path.read_text().replace("72.34", "79.4"))
    bars = ablation_bars(fill(7, group(runs_of(tmp_path))[0]), "x.png")
    assert (bars[-1].best, bars[-1].printed) == (77.0, 77.89)
    tops = [patch.get_y() + patch.get_height() for patch in drawn[0].axes[0].patches]
    assert tops == pytest.approx([72.50, 77.37, 77.42, 74.88, 77.62, 77.15, 77.05, 77.0, 77.89])
    with pytest.raises(UserError, match="no finished run of resnet56 → resnet20"):
        ablation_bars(fill(7, [], teacher="resnet56", student="resnet20"), "x.png")


# ---------------------------------------------------------------------- a search


def test_search_is_drawn_in_the_order_of_its_trials(tmp_path, write, drawn):
    for age, value, top1 in ((30, 0.2, 60.0), (20, 1.0, 55.0), (10, 0.4, 62.0)):
        write(top1, top1 - 1, variant=f"distiller.temperature={value}", evaluated_on="holdout", age=age)
    write(70.0, 69.0, variant="distiller.temperature=4")  # on the test set: no trial
    write(70.0, 69.0, evaluated_on="holdout")
    trials = search_trials(runs_of(tmp_path), "x.png", parameter="distiller.temperature")
    assert [(t.order, t.value, t.top1) for t in trials] == [(1, 0.2, 60.0), (2, 1.0, 55.0), (3, 0.4, 62.0)]
    axes = drawn[0].axes[0]
    assert axes.get_xscale() == "log"
    points, ring = axes.collections
    np.testing.assert_array_equal(points.get_offsets(), [(0.2, 60.0), (1.0, 55.0), (0.4, 62.0)])
    np.testing.assert_array_equal(points.get_array(), [1, 2, 3])
    np.testing.assert_array_equal(ring.get_offsets(), [(0.4, 62.0)])
    assert "best of 3: 0.4, 62.00 %" in axes.get_title(loc="left")


def test_a_search_is_one_and_of_numbers(tmp_path, write):
    with pytest.raises(UserError, match=r"given distiller\.beta and judged on held-out images"):
        search_trials([], "x.png", parameter="distiller.beta")
    write(60.0, 59.0, variant="distiller.normalize=l2", evaluated_on="holdout")
    with pytest.raises(UserError, match=r"distiller\.normalize=l2 is no number"):
        search_trials(runs_of(tmp_path), "x.png", parameter="distiller.normalize")
    write(60.0, 59.0, variant="distiller.temperature=1", evaluated_on="holdout")
    write(60.0, 59.0, variant="distiller.temperature=1", evaluated_on="holdout", epochs=3)
    with pytest.raises(UserError, match=r"one search, and there are several: .*240 epochs; .*3 epochs"):
        search_trials(runs_of(tmp_path), "x.png", parameter="distiller.temperature")


# ---------------------------------------------------------------------- command line


def test_command_draws_from_the_tracked_runs(tmp_path, capsys):
    main = harness.script("figures").main
    path = tmp_path / "new" / "x.png"
    few = ["--epochs", "5", "--methods", "mcld,none"]
    assert main(["figure3", str(PUBLISHED), *few, "--output", str(path)]) == 0
    assert path.stat().st_size > 5000
    assert capsys.readouterr().out == f"{path}\n"
    assert main(["figure5", str(PUBLISHED), "--epochs", "3", "--output", str(path.with_suffix(".svg"))]) == 0
    assert "5 blocks of 20 steps" in path.with_suffix(".svg").read_text()


def test_command_mistakes_are_one_sentence(tmp_path, write, capsys):
    write(71.0, 70.0)
    write(71.0, 70.0, teacher="resnet110")
    main = harness.script("figures").main
    for arguments, words in (
        (["figure3", "--output", "x.doc"], "x.doc cannot be drawn: its name must end in .png, .pdf or .svg."),
        (["figure3"], "A picture shows one pair of networks, and there are several"),
        (["figure3", "--epochs", "5"], "No finished run that was asked for below"),
        (["figure3", "--teacher", "resnet56"], "None of these runs has a metrics.csv"),
        (["figure3", "--methods", "kd,mcld"], "There is no finished run of kd; there are mcld."),
        (["figure6", "--teacher", "resnet56"], "has neither features.safetensors nor student.safetensors"),
        (["table7", "--student", "resnet20"], "Table 7 has no student resnet20: name both"),
        (["table7", "--epochs", "few"], "--epochs few is no number of epochs."),
        (["search"], "There is no finished run that was given distiller.temperature"),
    ):
        assert main([arguments[0], str(tmp_path), *arguments[1:]]) == 1
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == (2 if "figure6" in arguments else 1)  # it first says what it is about to do
    assert not Path("figure3.png").exists()
