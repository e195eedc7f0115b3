"""From a table's rows and the user's words to command lines."""

import pytest

from distill.errors import UserError
from distill.sweep.rows import expand

ROWS = (
    "networks=a-b,c-d distiller=kd,mcld",
    "networks=a-b,c-d distiller=dkd optimizer=dot",
    "teacher=none distiller=none student=b,d",
)


def jobs(*given: str) -> list[str]:
    return [" ".join(words) for words in expand(ROWS, "seed=0,1", given, loader=None)]


def test_a_row_is_every_one_with_every_other():
    assert jobs()[:4] == [
        "seed=0 teacher=a student=b distiller=kd",
        "seed=0 teacher=a student=b distiller=mcld",
        "seed=0 teacher=c student=d distiller=kd",
        "seed=0 teacher=c student=d distiller=mcld",
    ]
    assert len(jobs()) == 2 * (4 + 2 + 2)
    assert "seed=1 teacher=c student=d distiller=dkd optimizer=dot" in jobs()
    assert "seed=1 teacher=none distiller=none student=d" in jobs()


def test_all_rows_have_one_seed_before_any_has_two():
    seeds = [next(word for word in line.split() if word.startswith("seed=")) for line in jobs()]
    assert seeds == ["seed=0"] * 8 + ["seed=1"] * 8
    within = [line.replace("seed=1", "seed=0") for line in jobs()]
    assert within[:8] == within[8:]
    assert jobs("seed=1,0") == jobs()  # as the table has them


NARROWED = {
    ("seed=1",): 8,
    ("distiller=kd",): 4,
    ("distiller=kd,none",): 8,
    ("optimizer=dot",): 4,
    ("student=b",): 8,
    ("teacher=a",): 8,  # the student alone belongs to it
    ("networks=c-d", "seed=0"): 4,
    ("teacher=none",): 4,
}


@pytest.mark.parametrize("given", NARROWED, ids=" ".join)
def test_values_of_the_table_choose_from_it(given):
    chosen = jobs(*given)
    assert len(chosen) == NARROWED[given]
    assert set(chosen) < set(jobs())


def test_of_a_teacher_only_its_own_students_stay():
    assert {line for line in jobs("teacher=a", "seed=0") if "none" in line} == {
        "seed=0 teacher=none distiller=none student=b"
    }


def test_other_values_take_the_place_of_the_tables():
    assert jobs("seed=7") == [line.replace("seed=0", "seed=7") for line in jobs("seed=0")]
    moved = jobs("teacher=x", "student=y", "seed=0")
    assert moved == [
        "seed=0 teacher=x student=y distiller=kd",
        "seed=0 teacher=x student=y distiller=mcld",
        "seed=0 teacher=x student=y distiller=dkd optimizer=dot",
        "seed=0 teacher=none distiller=none student=y",
    ]
    assert jobs("networks=x-y", "seed=0")[:3] == moved[:3]


def test_a_student_alone_gets_no_method():
    lines = jobs("distiller=rld", "seed=0", "distiller.temperature=2")
    assert lines == [
        "seed=0 teacher=a student=b distiller=rld distiller.temperature=2",
        "seed=0 teacher=c student=d distiller=rld distiller.temperature=2",
        "seed=0 teacher=a student=b distiller=rld optimizer=dot distiller.temperature=2",
        "seed=0 teacher=c student=d distiller=rld optimizer=dot distiller.temperature=2",
        "seed=0 teacher=none distiller=none student=b",
        "seed=0 teacher=none distiller=none student=d",
    ]


def test_of_several_values_those_of_the_table_choose_and_the_others_are_added():
    assert jobs("seed=0,1,5") == jobs() + jobs("seed=5")


def test_other_keys_are_added_but_none_of_a_teacher_to_a_student_alone():
    lines = jobs("recipe.epochs=3", "teacher.keep=disk")
    assert len(lines) == len(jobs())
    assert all("recipe.epochs=3" in line for line in lines)
    assert all(("teacher.keep=disk" in line) != ("teacher=none" in line) for line in lines)
    assert len(jobs("recipe.lr=.1,.2")) == 2 * len(jobs())


def test_the_rows_words_win_over_those_of_all():
    assert expand(["seed=5 x=1"], "seed=0,1 y=2", [], loader=None) == [["seed=5", "y=2", "x=1"]]


def test_without_rows_there_is_the_command_line():
    assert expand([], "", ["a=1,2", "~b", "+c=[1,2]", "a=3,4"], loader=None) == [
        ["a=3", "~b", "+c=[1,2]"],
        ["a=4", "~b", "+c=[1,2]"],
    ]


def test_without_rows_a_student_alone_has_the_method_that_is_named():
    assert expand([], "", ["teacher=none", "distiller=a,b"], loader=None) == [
        ["teacher=none", "distiller=a"],
        ["teacher=none", "distiller=b"],
    ]


def test_what_lists_no_values_is_refused():
    with pytest.raises(UserError, match=r"^distiller.temperature=interval\(0, 1\) lists no values"):
        expand([], "", ["distiller.temperature=interval(0, 1)"], loader=None)
    with pytest.raises(UserError, match=r"networks=resnet8 is no pair: write networks=TEACHER-STUDENT\."):
        expand([], "", ["networks=resnet8"], loader=None)
