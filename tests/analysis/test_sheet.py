"""Our numbers in the paper's tables: the right cell, what is missing, and two ways to print it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import harness
from distill.analysis.html import html
from distill.analysis.page import markdown
from distill.analysis.sheet import fill, report
from distill.analysis.store import find_results
from distill.analysis.table import group, overview

PUBLISHED = Path(__file__).parents[2] / "outputs" / "published"


def filled(folder, table, **narrower):
    results, skipped = find_results([folder])
    assert not skipped
    return fill(table, group(results)[0], **narrower)


def cell(sheet, row, column):
    labels = [line.label for group in sheet.layout.groups for line in group.lines]
    place = labels.index(row) * len(sheet.layout.columns) + sheet.layout.columns.index(column)
    return sheet.cells[place]


def printed(sheet, row, column):
    """The lines of one cell, notes included."""
    (grid,) = report(sheet).grids
    (found,) = [one for band in grid.bands for one in band.rows if one[0][0].text.rstrip("*") == row]
    return [line.marked for line in found[grid.columns.index(column)]]


SMALL = "resnet56 → resnet20"


def test_a_cell_has_ours_last_the_papers_and_the_difference(tmp_path, write):
    for seed, (best, last) in enumerate([(73.0, 72.0), (73.5, 72.5), (74.0, 73.0)]):
        write(best, last, seed=seed, distiller="at", teacher="resnet56")
    write(60.0, 59.0, seed=0, distiller="at", teacher="resnet110")
    sheet = filled(tmp_path, 2)
    assert printed(sheet, "AT", SMALL) == ["73.50 ± 0.50 (3)", "last 72.50 ± 0.50", "paper 70.55", "+2.95"]
    assert printed(sheet, "RKD", SMALL) == ["–", "paper 69.61"]
    assert cell(sheet, "AT", SMALL).plain()["difference"] == pytest.approx(2.95)
    # the other teacher of that student is another column, and our resnet110 as weak as a resnet56 is said
    where = "resnet110 → resnet20"
    assert printed(sheet, "AT", where)[:2] == ["60.00 ± – (1)", "last 59.00 ± –"]
    assert cell(sheet, "AT", where).difference is None


def test_a_student_alone_stands_in_all_its_columns_and_a_teacher_is_what_runs_measured(tmp_path, write):
    write(69.0, 68.5, distiller="none")
    write(71.0, 70.0)
    sheet = filled(tmp_path, 2)
    for name in (SMALL, "resnet110 → resnet20"):
        assert printed(sheet, "student alone", name) == ["69.00 ± – (1)", "last 68.50 ± –", "paper 69.06", "-0.06"]
    assert printed(sheet, "teacher", SMALL) == ["72.34", "paper 72.34", "+0.00"]
    assert printed(sheet, "teacher", "vgg13 → vgg8") == ["–", "paper 74.64"]


def test_two_named_methods_and_dot_find_their_rows(tmp_path, write):
    write(71.0, 70.0, distiller="dkd", variant="optimizer=dot")
    write(72.0, 71.0, distiller="lskd_dkd")
    write(73.0, 72.0, distiller="dkd")
    write(74.0, 73.0, distiller="ctkd")
    write(40.0, 39.0, distiller="dkd", variant="distiller.beta=1")
    sheet = filled(tmp_path, 2)
    found = {name: cell(sheet, name, SMALL).best.mean for name in ("DOT+DKD", "LSKD+DKD", "DKD", "CTKD+KD", "KD")}
    assert found == {"DOT+DKD": 71.0, "LSKD+DKD": 72.0, "DKD": 73.0, "CTKD+KD": 74.0, "KD": None}


def test_other_lengths_are_shown_on_demand_and_not_set_against_the_paper(tmp_path, write):
    write(45.0, 44.0, epochs=3)
    assert cell(filled(tmp_path, 2), "MCLD", SMALL).best.mean is None
    sheet = filled(tmp_path, 2, epochs=3)
    lines = printed(sheet, "MCLD", SMALL)
    assert lines[0] == "45.00 ± – (1)"
    assert lines[-1].startswith("paper 71.41 [")
    notes = report(sheet).notes
    assert "No difference is taken: ours trained for 3 epochs, the paper's for 240." in notes
    assert all(f"[{number}]" in markdown(report(sheet)) for number in range(1, len(notes) + 1))


def test_a_row_of_another_length_is_set_against_its_own(tmp_path, write):
    pair = {"student": "resnet8x4", "teacher": "resnet32x4", "distiller": "lskd_mlkd"}
    path = write(77.0, 76.0, epochs=480, variant="experiment=mlkd_480", **pair)
    path.write_text(path.read_text().replace("72.34", "79.4"))
    sheet = filled(tmp_path, 3)
    assert cell(sheet, "LSKD+MLKD, 480 epochs", "resnet32x4 → resnet8x4").difference == pytest.approx(77.0 - 71.21)
    assert cell(sheet, "LSKD+MLKD, 240 epochs", "resnet32x4 → resnet8x4").best.mean is None


def test_a_much_weaker_teacher_forbids_the_difference(tmp_path, write):
    write(76.0, 75.0, student="resnet8x4", teacher="resnet32x4")  # whose own number is 72.34 here
    sheet = filled(tmp_path, 2)
    assert cell(sheet, "MCLD", "resnet32x4 → resnet8x4").difference is None
    assert "No difference is taken: our resnet32x4 has 72.34, the paper's 79.42." in report(sheet).notes


def test_runs_on_held_out_images_do_not_count(tmp_path, write):
    write(71.0, 70.0, evaluated_on="holdout")
    assert cell(filled(tmp_path, 2), "MCLD", SMALL).best.mean is None


def test_imagenet_top5_is_that_of_the_same_runs(tmp_path, write):
    names = {"data": "imagenet", "teacher": "ResNet34", "student": "ResNet18", "distiller": "mcld"}
    write(71.0, 70.0, names=names, epochs=100, teacher="ResNet34", student="ResNet18")
    sheet = filled(tmp_path, 5)
    assert [cell(sheet, "MCLD", name).best.mean for name in sheet.layout.columns] == [71.0, 91.0, None, None]


def test_ablation_by_the_terms_that_are_on(tmp_path, write):
    pair = {"student": "resnet20", "teacher": "resnet56"}
    off = "distiller.ce_weight=0"
    write(30.0, 29.0, distiller="none", **pair)
    write(35.0, 34.0, variant=f"{off} distiller.category_weight=0 distiller.sample_weight=0", **pair)
    write(36.0, 35.0, variant=f"{off} distiller.category_weight=0 distiller.instance_weight=0.0", **pair)
    write(37.0, 36.0, variant=off, **pair)
    write(38.0, 37.0, **pair)  # with cross-entropy, which this teacher has by default
    write(39.0, 38.0, variant=f"{off} distiller.temperature=1", **pair)
    sheet = filled(tmp_path, 7, teacher="resnet56", student="resnet20")
    names = ("none: student alone", "instance", "sample", "category", "instance + sample + category")
    assert [cell(sheet, name, SMALL).best.mean for name in names] == [30.0, 35.0, 36.0, None, 37.0]
    assert all(one.difference is None for one in sheet.cells)
    assert "No difference is taken: the paper's number is of resnet32x4 → resnet8x4." in report(sheet).notes


def test_without_a_word_on_cross_entropy_the_default_is_taken(tmp_path, write):
    path = write(77.0, 76.0, student="resnet8x4", teacher="resnet32x4")
    path.write_text(path.read_text().replace("72.34", "79.4"))
    sheet = filled(tmp_path, 7)
    assert cell(sheet, "instance + sample + category", "resnet32x4 → resnet8x4").difference == pytest.approx(-0.89)


def test_probes_of_networks_that_trained_as_long_as_the_papers(tmp_path, write):
    def names(teacher, student, distiller):
        return {"data": "stl10", "teacher": teacher, "student": student, "distiller": distiller}

    write(70.0, 69.0, kind="probe", epochs=40, names=names("resnet32x4", "resnet8x4", "mcld"))
    write(60.0, 59.0, kind="probe", epochs=40, names=names("none", "resnet8x4", "none"))
    write(65.0, 64.0, kind="probe", epochs=40, names=names("resnet32x4", "resnet32x4", "teacher"))
    short = names("resnet32x4", "resnet8x4", "dkd")
    write(50.0, 49.0, kind="probe", epochs=40, names=short, variant="recipe.epochs=3")
    sheet = filled(tmp_path, 8)
    found = [cell(sheet, name, "STL-10").best.mean for name in ("MCLD", "student alone", "teacher", "DKD")]
    assert found == [70.0, 60.0, 65.0, None]
    assert all(one.difference is None for one in sheet.cells)
    assert cell(filled(tmp_path, 8, epochs=3), "DKD", "STL-10").best.mean == 50.0
    assert "python src/probe.py -m data=stl10,tiny_imagenet" in sheet.missing[1]


def test_a_probe_of_a_part_serves_until_there_is_one_of_all(tmp_path, write):
    said = {"kind": "probe", "epochs": 100, "variant": "recipe.epochs=3 data.complete=false"}
    column = "resnet56 → resnet20, Tiny-ImageNet"
    pair = {"data": "tiny_imagenet", "teacher": "resnet56", "student": "resnet20"}
    names = pair | {"distiller": "mcld"}
    probe = {"training_images": 10000, "source_hash": "one"}
    part = write(30.0, 29.0, **said, names=names, probe=probe)
    alone = pair | {"student": "resnet56", "distiller": "teacher"}
    write(22.0, 21.0, **said | {"variant": "data.complete=false"}, names=alone, probe={"training_images": 10000})
    sheet = filled(tmp_path, 8, teacher="resnet56", student="resnet20", epochs=3)
    assert cell(sheet, "MCLD", column).best.mean == 30.0
    assert cell(sheet, "teacher", column).best.mean == 22.0  # of a network that was not trained here
    assert "Ours learnt on a part of the data set, 10,000 images." in report(sheet).notes
    again = "Ours has seeds of the classifier alone: one network was probed again and again."
    assert again not in report(sheet).notes
    write(30.0, 29.0, **said, names=names, seed=1, probe=probe)
    assert again in report(filled(tmp_path, 8, teacher="resnet56", student="resnet20", epochs=3)).notes
    write(40.0, 39.0, **said | {"variant": "recipe.epochs=3"}, names=names, probe={"training_images": 100000})
    assert part.exists()
    sheet = filled(tmp_path, 8, teacher="resnet56", student="resnet20", epochs=3)
    assert cell(sheet, "MCLD", column).best.mean == 40.0


# ---------------------------------------------------------------------- what is missing


def test_missing_is_what_has_fewer_than_three_seeds(tmp_path, write):
    for seed in range(3):
        for distiller in ("none", "kd", "dkd"):
            write(71.0, 70.0, distiller=distiller, seed=seed)
    write(71.0, 70.0, seed=1)
    sheet = filled(tmp_path, 6, teacher="resnet56", student="resnet20")
    assert sheet.missing == ["python src/train.py -m experiment=table6 teacher=resnet56 student=resnet20"]
    for seed in (0, 2):
        write(71.0, 70.0, seed=seed)
    assert filled(tmp_path, 6, teacher="resnet56", student="resnet20").missing == []


def test_missing_parts_are_commands_by_our_names(tmp_path):
    whole, *parts = filled(tmp_path, 3, epochs=None).missing
    assert whole == "python src/train.py -m experiment=table3"
    assert parts == [
        "python src/train.py -m teacher=none student=resnet8x4,vgg8,wrn_40_1,wrn_16_2 distiller=none seed=0,1,2",
        "python src/train.py -m teacher=resnet32x4 student=resnet8x4 distiller=lskd_mlkd,mcld seed=0,1,2",
        "python src/train.py -m teacher=vgg13 student=vgg8 distiller=lskd_mlkd,mcld seed=0,1,2",
        "python src/train.py -m teacher=wrn_40_2 student=wrn_40_1,wrn_16_2 distiller=lskd_mlkd,mcld seed=0,1,2",
        *(
            f"python src/train.py -m {pair} distiller=lskd_mlkd recipe.epochs=480 seed=0,1,2"
            for pair in (
                "teacher=resnet32x4 student=resnet8x4",
                "teacher=vgg13 student=vgg8",
                "teacher=wrn_40_2 student=wrn_40_1,wrn_16_2",
            )
        ),
    ]


def test_missing_parts_of_the_ablation_and_of_dot(tmp_path):
    lines = filled(tmp_path, 7, teacher="resnet56", student="resnet20", epochs=3).missing
    assert lines[0] == "python src/train.py -m experiment=table7 teacher=resnet56 student=resnet20 recipe.epochs=3"
    pair = "python src/train.py -m teacher=resnet56 student=resnet20"
    off = "distiller=mcld distiller.ce_weight=0 distiller.instance_weight=0 distiller.category_weight=0"
    assert f"{pair} {off} recipe.epochs=3 seed=0,1,2" in lines
    dot = "distiller=dkd optimizer=dot seed=0,1,2"
    assert f"{pair} {dot}" in filled(tmp_path, 2, teacher="resnet56", student="resnet20").missing


# ---------------------------------------------------------------------- as Markdown and as HTML


class Reader(HTMLParser):
    """Rows of cells of lines, notes in brackets as Markdown has them; and what a page must not hold."""

    def __init__(self):
        super().__init__()
        self.rows, self.tags, self.links, self.note = [], set(), [], False

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.links += [value for key, value in attributes if key in ("href", "src")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append([""])
            span = int(dict(attributes).get("colspan", 1))
            self.rows[-1] += [[""] for _ in range(span - 1)]
            self.target = self.rows[-1][-span]
        elif tag in ("div", "br") and self.rows and self.target[-1]:
            self.target.append("")
        elif tag == "sup":
            self.note = True

    def handle_endtag(self, tag):
        if tag == "sup":
            self.note = False
        if tag == "table":
            self.target = [""]

    def handle_data(self, data):
        if not self.rows:
            return
        if self.note:
            data = f" [{data}]" if data.strip(", ") else ""
        self.target[-1] += data


def of_html(page):
    reader = Reader()
    reader.feed(html(page))
    heads = [[" ".join(cell) for cell in row] for row in reader.rows if row[0] == [""] or row[0][0] == "pair"]
    return [["|".join(line.strip() for line in cell) for cell in row] for row in reader.rows], heads, reader


def of_markdown(page):
    rows = [line[2:-2].split(" | ") for line in markdown(page).splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[0] != "---"]
    return [[c.strip().replace("**", "").replace("\\*", "*").replace("<br>", "|") for c in row] for row in rows]


def pages(tmp_path, write):
    for seed in range(3):
        write(71.0 + seed, 70.0, seed=seed)
        write(69.0, 68.0, seed=seed, distiller="none", epochs=5)
    write(60.0, 59.0, distiller="dkd", variant="optimizer=dot", epochs=3)
    results, _ = find_results([tmp_path])
    rows, notes = group(results)
    return [
        *(report(fill(table, rows)) for table in range(1, 12)),
        report(fill(2, rows, epochs=3)),
        overview(rows, notes),
    ]


def test_html_and_markdown_say_the_same(tmp_path, write):
    for page in pages(tmp_path, write):
        rows, _, reader = of_html(page)
        wanted = of_markdown(page)
        # headings break a pair in two lines
        assert [[cell.replace("→|", "→ ") for cell in row] for row in rows] == wanted
        text = html(page)
        for sentence in (*page.legend, *page.notes, *page.remarks, *page.commands):
            for escaped in (sentence.replace("'", "&#x27;"),):
                assert escaped.replace("&", "&amp;").replace("&amp;#x27;", "&#x27;").replace(">", "&gt;") in text
        assert not {"script", "link", "img", "iframe"} & reader.tags
        assert all(link.startswith("#note") for link in reader.links)
        assert "http" not in text
        assert text.count('id="note') == len(page.notes)


def test_html_lies_on_its_side_where_it_is_wide(tmp_path, write):
    _, two, *_, seven = [html(page) for page in pages(tmp_path, write)[:7]]
    assert "size: landscape" in two
    assert "size: portrait" in seven


# ---------------------------------------------------------------------- command line


def test_command_lays_out_a_table_of_the_tracked_runs(tmp_path, capsys):
    main = harness.script("table").main
    arguments = [str(PUBLISHED), "--table", "7", "--teacher", "resnet56", "--student", "resnet20", "--epochs", "3"]
    assert main([*arguments, "--html", str(tmp_path / "new" / "t.html")]) == 0
    text = capsys.readouterr().out
    found = re.search(
        r"\| instance \| (\d\d\.\d\d ± \S+ \(\d\))<br>last \d\d\.\d\d ± \S+<br>paper 77\.37 \[1\] \[2\] \|", text
    )
    assert found
    assert found[1] in (tmp_path / "new" / "t.html").read_text()
    assert main([*arguments, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["table"], len(content["rows"])) == (7, 8)
    assert content["rows"][1]["cells"][0]["paper"]["instead_of"] == "resnet32x4 → resnet8x4"


def test_an_empty_store_shows_what_is_missing(tmp_path, capsys):
    assert harness.script("table").main([str(tmp_path), "--table", "2"]) == 0
    assert "python src/train.py -m experiment=table2\n" in capsys.readouterr().out


def test_command_mistakes_are_one_sentence(tmp_path, capsys):
    main = harness.script("table").main
    for arguments, words in (
        (["--table", "12"], "The paper has no Table 12: choose from 1 to 11."),
        (["--table", "2", "--student", "resnet44"], "Table 2 has no student resnet44"),
        (["--table", "2", "--epochs", "few"], "--epochs few is no number of epochs."),
        (["--table", "2", "--data", "cifar100"], "--data cannot go with --table"),
    ):
        assert main([str(tmp_path), *arguments]) == 1
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
