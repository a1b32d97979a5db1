"""Rows that come more than once: what is said of them, and which are refused."""

import random
from pathlib import Path

import pytest

from letheon.data.conversations import Turn
from letheon.data.repeats import describe_repeats, text_key
from letheon.data.rows import Row, Rows, check_disjoint, read_rows
from letheon.errors import DataError


def row(prompt: str, answer: str, *, kind: str = "question", turns: tuple[Turn, ...] = ()) -> Row:
    return Row("x", prompt, answer, "default", "completion" if kind == "completion" else "question", turns)


def rows_of(*rows: Row) -> Rows:
    return Rows("rows.jsonl", rows, tuple(range(1, len(rows) + 1)), ids_given=False)


def test_a_file_without_repeats_says_nothing_of_them() -> None:
    assert describe_repeats([row("a", "b"), row("a", "c"), row("b", "b")], [1, 2, 3], unit="line") == ""
    assert describe_repeats([], [], unit="line") == ""


def test_repeats_are_counted_and_the_first_named_by_their_places() -> None:
    rows = [row("a", "b"), row("c", "d"), row("a ", " b"), row("a", "b"), row("c", "d"), row("a", "b")]
    assert describe_repeats(rows, [2, 3, 5, 6, 8, 9], unit="line") == (
        "4 repeated and counted each time (line 5 of line 2, line 6 of line 2, line 8 of line 3, 1 more)"
    )


def test_the_same_prompt_after_another_conversation_is_no_repeat() -> None:
    rows = [row("a", "b", turns=(Turn("user", text), Turn("assistant", "y"))) for text in ("u", "v", "u")]
    assert describe_repeats(rows, [1, 2, 3], unit="row") == "1 repeated and counted each time (row 3 of row 1)"


@pytest.mark.parametrize("seed", range(5))
def test_repeats_are_those_that_comparing_each_with_all_before_finds(seed: int) -> None:
    draw = random.Random(seed)
    rows = [row(draw.choice("ab"), draw.choice("cdefghij")) for _ in range(draw.randrange(30))]
    naive = sum(any(text_key(one) == text_key(other) for other in rows[:i]) for i, one in enumerate(rows))
    said = describe_repeats(rows, range(len(rows)), unit="line")
    assert said.startswith(f"{naive} repeated") if naive else said == ""


def test_rows_with_equal_hashes_are_repeats_only_if_they_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clashing(tuple[object, ...]):
        def __hash__(self) -> int:
            return 7

    monkeypatch.setattr("letheon.data.repeats.text_key", lambda one: Clashing((one.prompt, one.answer)))
    rows = [row("a", "b"), row("c", "d"), row("c", "d")]
    assert describe_repeats(rows, [1, 2, 3], unit="line") == "1 repeated and counted each time (line 3 of line 2)"


def test_a_file_says_its_repeats_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,answer\na,b\na,b\n")
    said: list[str] = []
    assert len(read_rows(path, note=said.append)) == 2
    assert said == [f"{path}: 2 rows: prompt/answer; 1 repeated and counted each time (line 3 of line 2)"]


def test_one_question_with_two_answers_is_refused_on_two_sides_and_not_on_one() -> None:
    with pytest.raises(
        DataError, match=r"^rows\.jsonl, line 2 \(id x\): expected a question .* rows\.jsonl, line 1 \(id x\)"
    ):
        check_disjoint(rows_of(row("z", "b"), row("a", "b")), rows_of(row("a ", "c")))
    check_disjoint(rows_of(row("a", "b"), row("a", "c")), rows_of(row("d", "e")))


@pytest.mark.parametrize(
    "kinds", [("completion", "completion"), ("completion", "question"), ("question", "completion")]
)
def test_a_beginning_may_have_an_end_to_forget_and_another_to_keep(kinds: tuple[str, str]) -> None:
    forget, retain = row("a", "b", kind=kinds[0]), row("a", "c", kind=kinds[1])
    check_disjoint(rows_of(forget), rows_of(retain))


def test_documents_and_other_conversations_ask_nothing_twice() -> None:
    check_disjoint(rows_of(row("", "a text")), rows_of(row("", "another text")))
    check_disjoint(rows_of(row("a", "b", turns=(Turn("system", "be brief"),))), rows_of(row("a", "c")))
