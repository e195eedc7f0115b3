"""Where the paper's numbers stand, and what is known of them."""

import re

import pytest

from distill import zoo
from distill.analysis import paper
from distill.analysis.layout import TITLES, layout, ours
from distill.errors import UserError


def rows(places):
    return {(group.title, line.label): line.slots for group in places.groups for line in group.lines}


def column(places, name):
    place = places.columns.index(name)
    return {key: slots[place].printed for key, slots in rows(places).items()}


@pytest.mark.parametrize("table", sorted(TITLES))
def test_every_printed_number_has_its_one_place(table):
    """But for networks alone, which stand in every column of their pairs."""
    shown = [slot for slot in layout(table).slots if slot.method not in ("teacher", "student_baseline") or slot.probe]
    printed = [slot.printed for slot in shown]
    metrics = ("top1", "top5") if table == 5 else ("top1",)
    alone = ("teacher", "student_baseline")
    wanted = [
        record[metric]
        for record in paper.records(table)
        for metric in metrics
        if record["method"] not in alone or "protocol" in record
    ]
    assert sorted(printed) == sorted(wanted)
    for slot in shown:
        record = slot.record
        assert (record["dataset"], record["method"]) == (slot.data, slot.method)
        assert slot.student == record["student"]
        assert slot.teacher == record["teacher"] or slot.method == "student_baseline"


@pytest.mark.parametrize("table", sorted(TITLES))
def test_networks_alone_are_printed_where_the_paper_has_them_anywhere(table):
    for slot in layout(table).slots:
        if slot.printed is None:
            assert slot.method == "student_baseline"
            assert ours(slot.data, slot.student) in ("shufflenetv2", "resnet32")
        elif slot.method == "teacher" and not slot.probe:
            assert slot.printed == paper.published(slot.data, ours(slot.data, slot.teacher), "any", "teacher") or (
                slot.data == "imagenet"
            )


@pytest.mark.parametrize(
    ("table", "name", "row", "number"),
    [
        (1, "resnet32x4 → shufflenetv2", ("logits", "MCLD"), 78.65),
        (1, "cifar_resnet50 → mobilenetv2", ("features", "CAT-KD"), 71.36),
        (1, "wrn_40_2 → resnet8x4", ("", "student alone"), 72.50),
        (2, "resnet56 → resnet20", ("logits", "DOT+DKD"), 72.11),
        (2, "resnet110 → resnet20", ("", "teacher"), 74.31),
        (3, "vgg13 → vgg8", ("", "LSKD+MLKD, 480 epochs"), 74.55),
        (4, "wrn_40_2 → mobilenetv2", ("", "LSKD+MLKD, 240 epochs"), 68.11),
        (6, "teacher cifar_resnet50", ("student mobilenetv2", "MCLD"), 72.41),
        (6, "teacher resnet110", ("student resnet20", "MCLD"), 71.36),
        (7, "resnet32x4 → resnet8x4", ("", "instance + category"), 77.15),
        (7, "resnet32x4 → resnet8x4", ("", "none: student alone"), 72.50),
        (8, "Tiny-ImageNet", ("", "MCLD"), 36.19),
        (9, "STL-10", ("", "teacher"), 63.99),
        (10, "teacher wrn_28_4", ("student wrn_16_2", "MCLD"), 77.47),
        (11, "teacher vgg13", ("student wrn_16_2", "DKD"), 75.45),
    ],
)
def test_numbers_read_off_the_pages(table, name, row, number):
    assert column(layout(table), name)[row] == number


def test_imagenet_has_both_accuracies_of_both_pairs():
    places = layout(5)
    assert len(places.columns) == 4
    assert [slot.printed for slot in rows(places)["", "MCLD"]] == [71.66, 90.37, 72.98, 91.40]
    assert [slot.printed for slot in rows(places)["", "teacher"]] == [73.31, 91.42, 76.16, 92.86]


def test_imagenet_names_are_those_of_large_networks(monkeypatch):
    large = zoo.Entry("imagenet_resnet50", "x.X", {}, ("ResNet50",))
    monkeypatch.setattr(zoo, "CATALOGUE", (*zoo.CATALOGUE, large))
    assert (ours("imagenet", "ResNet50"), ours("cifar100", "ResNet50")) == ("imagenet_resnet50", "cifar_resnet50")
    assert ours("imagenet", "AnotherNet") == "AnotherNet"


# ---------------------------------------------------------------------- a part of a table, or another pair


def test_columns_are_chosen_by_either_network_by_any_name():
    assert layout(2, teacher="resnet110").columns == ("resnet110 → resnet32", "resnet110 → resnet20")
    assert layout(1, student="MobileNetV2").columns == layout(1, student="mobilenetv2").columns
    assert len(layout(1, student="mobilenetv2").columns) == 3
    both = layout(2, teacher="resnet56", student="resnet20")
    assert both.columns == ("resnet56 → resnet20",)
    assert column(both, "resnet56 → resnet20")["logits", "MCLD"] == 71.41


def test_a_student_of_table_6_keeps_its_rows_alone():
    titles = [group.title for group in layout(6, student="resnet20").groups]
    assert titles == ["", "student resnet20"]
    assert len(layout(6, student="resnet20").columns) == 6


def test_a_table_of_one_pair_keeps_its_numbers_beside_another():
    slots = layout(7, teacher="resnet56", student="resnet20").slots
    assert {slot.instead_of for slot in slots} == {"resnet32x4 → resnet8x4"}
    assert [slot.printed for slot in slots] == [slot.printed for slot in layout(7).slots]
    assert {(slot.teacher, slot.student) for slot in slots} == {(None, "resnet20"), ("resnet56", "resnet20")}


def test_in_a_table_of_many_another_pair_has_the_networks_numbers_only():
    places = layout(1, teacher="resnet56", student="resnet20")
    found = column(places, "resnet56 → resnet20")
    assert (found["", "teacher"], found["", "student alone"]) == (72.34, 69.06)
    assert {number for (group, _), number in found.items() if group} == {None}
    # another family is a row of Table 6, which has groups by student
    places = layout(6, teacher="vgg13", student="vgg8")
    assert [label for _, label in rows(places)] == ["teacher", "student alone", "DKD", "MCLD"]


def test_mistakes():
    with pytest.raises(UserError, match="no Table 12: choose from 1 to 11"):
        layout(12)
    with pytest.raises(UserError, match="Table 2 has no student resnet44: name both"):
        layout(2, student="resnet44")


# ---------------------------------------------------------------------- doubts


def doubts(table, name, row):
    places = layout(table)
    return rows(places)[row][places.columns.index(name)].doubts


@pytest.mark.parametrize(
    ("table", "name", "row", "words"),
    [
        (1, "wrn_40_2 → resnet8x4", ("logits", "KD"), "73.97"),
        (2, "resnet32x4 → resnet8x4", ("logits", "CTKD+KD"), "73.39"),
        (2, "resnet110 → resnet20", ("features", "AT"), "70.22"),
        (2, "wrn_40_2 → wrn_40_1", ("logits", "MCLD"), r"\+0\.28; by its rows it is \+0\.20"),
        (2, "resnet56 → resnet20", ("logits", "MCLD"), r"-0\.91; by its rows it is -0\.90"),
        (2, "resnet110 → resnet20", ("logits", "MCLD"), r"Table 6 has 71\.36"),
        (6, "teacher resnet110", ("student resnet20", "MCLD"), r"Table 2 has 71\.47"),
        (3, "resnet32x4 → resnet8x4", ("", "LSKD+MLKD, 240 epochs"), "77.99 at epoch 240"),
        (3, "resnet32x4 → resnet8x4", ("", "LSKD+MLKD, 480 epochs"), "78.28"),
        (4, "cifar_resnet50 → mobilenetv2", ("", "LSKD+MLKD, 240 epochs"), "did not converge"),
    ],
)
def test_doubtful_numbers_say_why(table, name, row, words):
    (found,) = doubts(table, name, row)
    assert re.search(words, found)


def test_most_numbers_are_not_doubted():
    assert doubts(2, "resnet32x4 → resnet8x4", ("logits", "MCLD")) == []
    all_of_them = [slot for table in TITLES for slot in layout(table).slots]
    assert sum(bool(slot.doubts) for slot in all_of_them) == 31


def test_every_doubt_is_of_a_number_that_is_there():
    """A slip of a name would hide it for good."""
    for doubt in paper._file("doubts.json")["doubts"]:
        keys = {key: value for key, value in doubt.items() if key not in ("says", "metric")}
        assert [r for r in paper.records() if keys.items() <= r.items()], doubt


@pytest.mark.parametrize("table", [1, 2])
def test_remarks_on_who_beats_mcld_follow_from_the_numbers(table):
    (said,) = paper.remarks(table)
    places = layout(table)
    for number, name in enumerate(places.columns):
        rivals = {label: slots[number].printed for (group, label), slots in rows(places).items() if group}
        mcld = rivals.pop("MCLD")
        best = max(rivals.values())
        assert (name in said) == (best > mcld)
        if best > mcld:
            assert f"{best:.2f}" in said


def test_what_the_authors_ran_again():
    again = {label for (_, label), slots in rows(layout(2)).items() if all(slot.reproduced for slot in slots)}
    assert again == {"DOT+DKD", "LSKD+MLKD", "LSKD+DKD"}
