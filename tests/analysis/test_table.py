"""Results made by hand, whose means and places in the table are known."""

import json
import math

import matplotlib.image
import pytest

import harness
from distill.analysis.figures.comparison import comparison
from distill.analysis.store import find_results, read_curve
from distill.analysis.table import group, markdown
from distill.errors import UserError


def rows_of(folder):
    results, skipped = find_results([folder])
    assert not skipped
    return group(results)


def lines(text):
    """The cells of each row of the table, below its header."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return [row for row in cells if row[0] not in ("pair", "---")]


def test_mean_and_sample_deviation_over_seeds(tmp_path, write):
    for seed, (best, last) in enumerate([(71.0, 70.0), (72.0, 70.5), (73.0, 71.0)]):
        write(best, last, seed=seed)
    ((row,), notes) = rows_of(tmp_path)
    assert row.seeds == [0, 1, 2]
    assert (row.best("top1").mean, row.best("top1").sd) == (72.0, 1.0)
    assert (row.last("top1").mean, row.last("top1").sd) == (70.5, 0.5)
    assert row.best("top5").mean == 92.0
    assert not notes
    (line,) = lines(markdown([row]))
    assert line == [
        *("resnet56 → resnet20", "mcld", "3", "72.00 ± 1.00", "70.50 ± 0.50", "92.00 ± 0.00", "80.00 ± 0.00"),
        *("71.41", "+0.59", "72.34", "1000"),
    ]


def test_one_seed_has_no_deviation(tmp_path, write):
    write(71.0, 70.0)
    rows, _ = rows_of(tmp_path)
    assert lines(markdown(rows))[0][3:5] == ["71.00 ± –", "70.00 ± –"]


def test_a_shorter_run_shows_the_papers_number_but_no_difference(tmp_path, write):
    write(60.0, 59.0, epochs=5)
    rows, _ = rows_of(tmp_path)
    text = markdown(rows)
    assert lines(text)[0][7:9] == ["71.41\\*", "–"]
    assert "number is for 240 epochs" in text
    assert rows[0].difference("top1") is None


def test_a_holdout_is_a_section_of_its_own_and_is_not_set_against_the_paper(tmp_path, write):
    write(71.0, 70.0)
    write(72.0, 71.0, evaluated_on="holdout")
    rows, _ = rows_of(tmp_path)
    assert [row.difference("top1") is None for row in rows] == [False, True]
    text = markdown(rows)
    assert text.count("## ") == 2
    assert "## cifar100, 240 epochs, held-out part of the training set" in text


def test_a_variant_has_its_own_row_and_no_published_number(tmp_path, write):
    write(71.0, 70.0)
    write(70.0, 69.0, variant="distiller.ce_weight=0")
    write(71.5, 70.0, distiller="dkd", variant="optimizer=dot", student="resnet8x4", teacher="resnet32x4")
    rows, _ = rows_of(tmp_path)
    assert [line[1] for line in lines(markdown(rows))] == ["dot+dkd", "mcld", "mcld distiller.ce_weight=0"]
    # DOT is an optimizer here, and part of the method's name in the paper
    assert [row.paper("top1") for row in rows] == [[(2, 76.12)], [(2, 71.41)], []]


def test_experiments_that_only_choose_are_no_variants(tmp_path, write):
    write(71.0, 70.0, variant="experiment=table2", seed=0)
    write(72.0, 71.0, seed=1)
    write(70.0, 69.0, variant="experiment=mcld_v2")
    write(76.0, 75.0, variant="distiller.temperature=2 experiment=table1 optimizer=dot", distiller="kd")
    rows, _ = rows_of(tmp_path)
    assert [(row.label, row.seeds) for row in rows] == [
        ("dot+kd distiller.temperature=2", [0]),
        ("mcld", [0, 1]),
        ("mcld experiment=mcld_v2", [0]),
    ]
    assert [row.difference("top1") is not None for row in rows] == [False, True, False]


def test_a_probe_is_a_section_of_its_own_and_takes_no_difference(tmp_path, write):
    names = {"data": "stl10", "teacher": "resnet32x4", "student": "resnet8x4", "distiller": "mcld"}
    write(70.0, 69.0, kind="probe", names=names, epochs=40)
    alone = {"data": "stl10", "teacher": "resnet32x4", "student": "resnet32x4", "distiller": "teacher"}
    write(65.0, 64.0, kind="probe", names=alone, epochs=40)
    rows, _ = rows_of(tmp_path)
    text = markdown(rows)
    assert "## linear probe, stl10, 40 epochs, test set" in text
    assert "comes from a protocol that it does not state; no difference is taken" in text
    cells = {line[0]: line[7:9] for line in lines(text)}
    assert cells == {"resnet32x4 → resnet8x4": ["70.61\\*", "–"], "resnet32x4": ["65.78\\*", "–"]}


def test_both_numbers_stand_where_the_papers_tables_disagree(tmp_path, write):
    write(71.0, 70.0, teacher="resnet110")
    rows, _ = rows_of(tmp_path)
    assert lines(markdown(rows))[0][7] == "71.47 (Table 6: 71.36)"


def test_order_is_by_student_then_teacher_then_baselines_then_name(tmp_path, write):
    for distiller in ("rld", "mcld", "kd", "none", "at"):
        write(70.0, 69.0, distiller=distiller)
    write(70.0, 69.0, teacher="resnet110")
    write(70.0, 69.0, student="resnet8x4", teacher="resnet32x4")
    write(70.0, 69.0, epochs=5)
    rows, _ = rows_of(tmp_path)
    shown = [(row.epochs, row.pair, row.distiller) for row in rows]
    small = "resnet56 → resnet20"
    assert shown == [
        (240, "resnet32x4 → resnet8x4", "mcld"),
        (240, "resnet20", "none"),
        *[(240, small, name) for name in ("kd", "at", "mcld", "rld")],
        (240, "resnet110 → resnet20", "mcld"),
        (5, small, "mcld"),
    ]


def test_of_one_configuration_run_twice_the_newest_counts_and_it_is_said(tmp_path, write):
    write(60.0, 59.0, hash="same", age=100)
    newest = write(71.0, 70.0, hash="same", age=0)
    write(50.0, 49.0, hash="same", age=50)
    write(73.0, 72.0, hash="other", seed=1)
    (row,), notes = rows_of(tmp_path)
    assert row.best("top1").mean == 72.0
    assert len(row.runs) == 2
    assert len(notes) == 1
    assert "seed 0 was run more than once" in notes[0]
    assert str(newest) in notes[0]
    assert notes[0] in markdown([row], notes)


def test_of_one_seed_with_two_configurations_the_newest_counts_and_it_is_said(tmp_path, write):
    write(70.0, 69.0, age=100)
    newest = write(72.0, 71.0)
    (row,), notes = rows_of(tmp_path)
    assert row.best("top1").mean == 72.0
    assert row.seeds == [0]
    assert notes[0].endswith(f"seed 0 was run with different configurations; {newest} is the newest, and counts.")


def test_a_probe_has_a_seed_and_its_network_another(tmp_path, write):
    for seed, network in ((0, 0), (1, 0), (0, 1), (1, 1)):
        write(70.0 + seed + 2 * network, 69.0, kind="probe", seed=seed, probe={"source_seed": network})
    newest = write(60.0, 59.0, kind="probe", seed=1, probe={"source_seed": 1}, age=-1)
    (row,), (note,) = rows_of(tmp_path)
    assert row.best("top1").mean == (70 + 71 + 72 + 60) / 4
    assert str(newest) in note


def test_a_run_that_was_made_here_goes_before_evidence_of_it(tmp_path, write):
    path = write(72.0, 71.0, hash="same", age=100)
    path.with_name("config.yaml").touch()
    write(72.0, 71.0, hash="same")  # the copy that is kept
    (row,), notes = rows_of(tmp_path)
    assert [run.path for run in row.runs] == [path]
    assert notes == []


def test_different_teachers_under_one_name_are_said(tmp_path, write):
    write(70.0, 69.0, seed=0)
    write(70.0, 69.0, seed=1)
    assert not rows_of(tmp_path)[1]
    path = write(70.0, 69.0, seed=2)
    content = json.loads(path.read_text())
    content["teacher"]["top1"] = 60.0
    path.write_text(json.dumps(content))
    assert any("teachers of different accuracy" in note for note in rows_of(tmp_path)[1])


# ---------------------------------------------------------------------- the store


def test_what_cannot_count_is_reported_with_its_reason(tmp_path, write):
    good = write(71.0, 70.0, seed=0)
    write(71.0, 70.0, status="running")
    write(71.0, 70.0, format=2)
    write(71.0, 70.0, names={"data": "cifar100"})
    write(71.0, 70.0, last="high")
    write(71.0, 70.0).write_text('{"format": 1, "sta')
    results, skipped = find_results([tmp_path])
    assert [run.path for run in results] == [good]
    reasons = [item.reason for item in skipped]
    expected = ("not finished but running", "format is 2", "lacks 'teacher'", "a value", "cannot be read")
    for reason, part in zip(reasons, expected, strict=True):
        assert part in reason


def test_overlapping_and_absent_folders(tmp_path, write):
    path = write(71.0, 70.0, folder=tmp_path / "a" / "b")
    results, _ = find_results([tmp_path, tmp_path / "a", tmp_path / "nowhere", path])
    assert len(results) == 1


def test_curve_skips_rows_without_a_value(tmp_path, write):
    path = write(71.0, 70.0, curve={1: 10.5, 2: 20.0})
    with (path.parent / "metrics.csv").open("a") as file:
        file.write("3,27,0.5,\n")
    (result,), _ = find_results([tmp_path])
    assert read_curve(result) == {1: 10.5, 2: 20.0}


# ---------------------------------------------------------------------- picture


def test_picture_shows_one_pair(tmp_path, write):
    for seed in range(2):
        write(71.0 + seed, 70.0, seed=seed, curve={e: 10.0 * e for e in range(1, 8)})
        write(69.5 + seed, 69.0, seed=seed, distiller="none", curve={e: 9.0 * e for e in range(1, 8)})
    comparison(find_results([tmp_path])[0], tmp_path / "new" / "x.png")
    picture = matplotlib.image.imread(tmp_path / "new" / "x.png")
    wide = picture.shape[1]
    assert 0.01 < (picture[..., :3].min(axis=2) < 0.9).mean() < 0.5
    for path in tmp_path.rglob("metrics.csv"):
        path.unlink()
    comparison(find_results([tmp_path])[0], tmp_path / "x.png")
    assert matplotlib.image.imread(tmp_path / "x.png").shape[1] < wide  # without curves there is one panel


def test_picture_refuses_several_pairs_and_unknown_formats(tmp_path, write):
    write(71.0, 70.0)
    with pytest.raises(UserError, match=r"x\.doc cannot be drawn: its name must end in \.png, \.pdf or \.svg"):
        comparison(find_results([tmp_path])[0], tmp_path / "x.doc")
    write(71.0, 70.0, teacher="resnet110")
    with pytest.raises(UserError, match=r"one pair of networks, and there are several: .*resnet110 → resnet20"):
        comparison(find_results([tmp_path])[0], tmp_path / "x.png")
    with pytest.raises(UserError, match="no finished run"):
        comparison([], tmp_path / "x.png")


# ---------------------------------------------------------------------- command line


def test_command_writes_markdown_json_and_picture(tmp_path, write, capsys):
    write(72.0, 70.0)
    write(75.0, 74.0, student="resnet8x4", teacher="resnet32x4")
    main = harness.script("table").main
    assert main([str(tmp_path)]) == 0
    assert len(lines(capsys.readouterr().out)) == 2
    assert main([str(tmp_path), "--json", "--output", str(tmp_path / "o" / "t.json")]) == 0
    rows = json.loads((tmp_path / "o" / "t.json").read_text())["rows"]
    assert [row["student"] for row in rows] == ["resnet8x4", "resnet20"]
    assert rows[1]["paper"] == [{"table": 2, "top1": 71.41}]
    assert math.isclose(rows[1]["difference"], 0.59)
    assert main([str(tmp_path), "--student", "resnet20", "--picture", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p.png").stat().st_size > 5000
    assert main([str(tmp_path), "--picture", str(tmp_path / "q.png")]) == 1
    assert "several" in capsys.readouterr().err


def test_metric_top5_is_that_of_the_best_epoch(tmp_path, write, capsys):
    write(72.0, 70.0)
    assert harness.script("table").main([str(tmp_path), "--metric", "top5"]) == 0
    line = lines(capsys.readouterr().out)[0]
    assert line[3:6] == ["92.00 ± –", "92.00 ± –", "70.00 ± –"]
    assert line[7:9] == ["–", "–"]


def test_nothing_found_says_where_it_looked(tmp_path, capsys):
    assert harness.script("table").main([str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == f"No finished run below {tmp_path / 'none'}.\n"


def test_passed_over_files_are_named(tmp_path, write, capsys):
    path = write(72.0, 70.0, status="running")
    assert harness.script("table").main([str(tmp_path)]) == 1
    assert f"passed over {path}: its run is not finished but running" in capsys.readouterr().err
