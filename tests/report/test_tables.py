"""Score tables and their renderings: every value is there, what is missing says why, and no text can do harm."""

import csv
import io
import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from letheon.data.rows import Kind
from letheon.evaluation.metrics.found import MembershipScores, MmluScores, RougeDrops
from letheon.evaluation.suites.lume.listing import NO_VARIANT
from letheon.evaluation.suites.lume.results import LumeResults, SplitName, SplitScores, TaskScores
from letheon.report.tables import (
    MISSING,
    Estimate,
    Table,
    before_after,
    cell_text,
    compare,
    pick_samples,
    side_by_side,
    to_csv,
    to_markdown,
    to_rich,
)
from letheon.report.text import shorten, to_markdown_text, to_markup, visible, visible_line
from letheon.report.verdict import mean_scores, verdict
from letheon.scores.predictions import Prediction


def _split(values: tuple[float, ...]) -> SplitScores:
    tasks = {f"Task{i + 1}": TaskScores(values[2 * i], values[2 * i], values[2 * i + 1], 30, 30) for i in range(3)}
    return SplitScores(overall=TaskScores(sum(values[::2]) / 3, 0.5, sum(values[1::2]) / 3, 90, 90), tasks=tasks)


def _results(forget: tuple[float, ...], retain: tuple[float, ...], *, auc: float = 0.55) -> LumeResults:
    score = 1 - 2 * abs(auc - 0.5)
    mia = MembershipScores(auc, (auc - 0.07, auc + 0.07), score, (score - 0.14, 0.98), 2.5, 2.6, 34, 34)
    mmlu = MmluScores(0.271, {"anatomy": 0.271}, 135, 5, None)
    return LumeResults("lume", "model", _split(forget), _split(retain), {}, 0.8125, mia, mmlu, 0.661)


BEFORE = _results((0.911, 0.822, 0.733, 0.944, 0.855, 0.766), (0.912, 0.823, 0.734, 0.945, 0.856, 0.767), auc=0.91)
AFTER = _results((0.011, 0.022, 0.033, 0.044, 0.055, 0.066), (0.901, 0.802, 0.703, 0.904, 0.805, 0.706))


def _with_variants(results: LumeResults, drops: RougeDrops, *, known: float) -> LumeResults:
    """The same with Unicode recalls of 0.5 and Unicode exact matches of `known`."""

    def changed(split: SplitScores | None) -> SplitScores:
        assert split is not None
        tasks = {
            name: replace(task, unicode_regurgitation=0.5, unicode_knowledge=known)
            for name, task in split.tasks.items()
        }
        return replace(split, tasks=tasks, rouge_drops=drops)

    forget, retain = changed(results.forget), changed(results.retain)
    return replace(results, forget=forget, retain=retain, unicode_task_aggregate=0.25)


def _prediction(
    row_id: str, split: SplitName = "forget", task: str = "Task1", kind: Kind = "completion", text: str = "words"
) -> Prediction:
    return Prediction(row_id, split, task, kind, f"prompt {row_id}", f"answer {row_id}", text, 0.5, 0.5, 0.0)


def _terminal(table: Table, *, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(to_rich(table))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_before_after_holds_all_twelve_scores_and_the_totals() -> None:
    rows = {row[0]: row[1:] for row in before_after(BEFORE, AFTER).rows}
    assert len(rows) == 12 + 5
    assert rows["Forget Task1 regurgitation"] == ("↓ lower", 0.911, 0.011)
    assert rows["Forget Task3 knowledge"] == ("↓ lower", 0.766, 0.066)
    assert rows["Retain Task2 regurgitation"] == ("↑ higher", 0.734, 0.703)
    assert rows["Retain Task2 knowledge"] == ("↑ higher", 0.945, 0.904)
    assert rows["Task aggregate"] == ("↑ higher", 0.8125, 0.8125)
    assert rows["MIA AUC (95%)"][0] == "→ 0.5"
    assert rows["MIA AUC (95%)"][2] == Estimate(0.55, 0.55 - 0.07, 0.55 + 0.07)
    assert rows["MMLU accuracy"] == ("↑ higher", 0.271, 0.271)
    assert rows["Final score"] == ("↑ higher", 0.661, 0.661)


def test_official_order_and_sections() -> None:
    table = before_after(BEFORE, AFTER)
    labels = [row[0] for row in table.rows]
    assert labels[:4] == [
        "Forget Task1 regurgitation",
        "Forget Task1 knowledge",
        "Forget Task2 regurgitation",
        "Forget Task2 knowledge",
    ]
    assert [labels[i] for i in table.sections] == ["Retain Task1 regurgitation", "Task aggregate"]


def test_missing_scores_are_dashes_with_their_reasons() -> None:
    after = LumeResults(
        "lume", "model", AFTER.forget, AFTER.retain, {}, 0.5, missing={"mia": "no --members", "mmlu": "no --mmlu"}
    )
    table = before_after(None, after)
    assert all(row[2] is None for row in table.rows)
    assert {row[0]: row[3] for row in table.rows}["MMLU accuracy"] is None
    assert "After: no MIA AUC (95%), MIA score (95%): no --members" in table.notes
    assert "After: no MMLU accuracy: no --mmlu" in table.notes
    assert "After: no Final score: no reason was recorded" in table.notes
    assert table.notes[0].startswith("Before: not evaluated. Run `letheon evaluate`")
    assert MISSING in to_markdown(table)
    assert "no --members" in _terminal(table, width=200)


def test_reason_of_a_single_score_wins_over_its_group() -> None:
    tasks = {"Task1": TaskScores(0.5, 0.5, None, 3, 0)}
    split = SplitScores(TaskScores(0.5, 0.5, None, 3, 0), tasks)
    missing = {"forget.Task1.knowledge": "no questions", "forget": "unused"}
    notes = compare({"A": LumeResults("own", "m", split, None, missing=missing)}).notes
    assert "A: no Forget Task1 knowledge: no questions" in notes


def test_both_evaluations_absent_leaves_only_dashes_and_two_notes() -> None:
    table = before_after(None, None)
    assert len(table.rows) == 5
    assert len(table.notes) == 2


def test_warnings_become_notes() -> None:
    assert "x: MMLU is low" in compare({"x": LumeResults("lume", "m", warnings=("MMLU is low",))}).notes


def test_compare_has_a_column_each_in_the_given_order() -> None:
    table = compare({"second": AFTER, "first": BEFORE})
    assert table.columns == ("Score", "Better", "second", "first")
    assert table.rows[0][2:] == (0.011, 0.911)


def test_unicode_variants_are_shown_where_the_official_scores_miss_something() -> None:
    drops = RougeDrops(10, 9, 1, 1)
    table = before_after(_with_variants(BEFORE, drops, known=0.9), _with_variants(AFTER, drops, known=1))
    labels = [row[0] for row in table.rows]
    assert labels[:4] == [
        "Forget Task1 regurgitation",
        "Forget Task1 regurgitation (Unicode)",
        "Forget Task1 knowledge",
        "Forget Task1 knowledge (Unicode)",
    ]
    rows = {row[0]: row[1:] for row in table.rows}
    assert len(rows) == 12 + 12 + 6
    assert rows["Retain Task3 regurgitation (Unicode)"] == ("↑ higher", 0.5, 0.5)
    assert rows["Forget Task2 knowledge (Unicode)"] == ("↓ lower", 0.9, 1)
    assert rows["Task aggregate (Unicode)"] == ("↑ higher", 0.25, 0.25)


def test_one_kind_alone_is_shown_with_its_variant() -> None:
    drops = RougeDrops(10, 9, 1, 1)
    same = replace(AFTER, forget=_split((0.5,) * 6), retain=_split((0.5,) * 6))
    labels = [row[0] for row in compare({"x": _with_variants(same, drops, known=0.5)}).rows]
    assert "Forget Task1 regurgitation (Unicode)" in labels
    assert "Forget Task1 knowledge (Unicode)" not in labels


def test_english_tables_look_as_without_variants() -> None:
    same = replace(AFTER, forget=_split((0.5,) * 6), retain=_split((0.5,) * 6))
    english = _with_variants(same, RougeDrops(1000, 1, 3, 0), known=0.5)
    assert compare({"x": english}) == compare({"x": same})


def test_an_earlier_evaluation_lacks_the_variants_and_says_why() -> None:
    table = before_after(BEFORE, _with_variants(AFTER, RougeDrops(10, 9, 1, 1), known=1))
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["Forget Task1 regurgitation (Unicode)"] == ("↓ lower", None, 0.5)
    (note,) = [note for note in table.notes if note.startswith("Before: no Forget Task1 regurgitation (Unicode), ")]
    assert note.endswith(NO_VARIANT)


def test_the_verdict_takes_the_variants_and_says_so() -> None:
    drops = RougeDrops(10, 10, 1, 1)
    empty = replace(AFTER, forget=_split((0.0,) * 6), retain=_split((0.0,) * 6))
    after = _with_variants(empty, drops, known=0.5)
    assert mean_scores("forgetting", after, after) == (0.5, 0.5)
    assert "did not forget the forget rows" in verdict(after, after).sentence
    assert verdict(after, after).sentence.endswith(
        "these means take the Unicode scores, since the official ones miss a part of this script."
    )
    assert mean_scores("forgetting", empty, after) == (0.0, 0.0)  # the first was scored before there were variants
    assert "Unicode" not in verdict(BEFORE, AFTER).sentence


@pytest.mark.parametrize(
    ("cell", "text"),
    [(None, "—"), (0.12345, "0.123"), (3, "3"), ("x", "x"), (Estimate(0.5, 0.4, 0.6), "0.500 (0.40–0.60)")],
)
def test_cell_text(cell: str | int | float | Estimate | None, text: str) -> None:
    assert cell_text(cell) == text


def test_csv_guards_formulas_and_leaves_numbers_alone() -> None:
    cells = ("=1+1", "+SUM(A1)", "-cmd", "@x", "\tq", " =2", "-0.5", "+1e-3", "plain", "a=b")
    table = Table("t", ("name", "value"), (*((cell, -0.25) for cell in cells), (None, 0.1234567)))
    rows = list(csv.reader(io.StringIO(to_csv(table))))
    assert rows[0] == ["name", "value"]
    shown = [row[0] for row in rows[1:]]
    assert shown == ["'=1+1", "'+SUM(A1)", "'-cmd", "'@x", "'\\tq", "' =2", "-0.5", "+1e-3", "plain", "a=b", ""]
    assert {row[1] for row in rows[1:]} == {"-0.25", "0.1234567"}


@given(st.sampled_from("=+-@\t\r"), st.text())
def test_csv_cell_never_starts_a_formula(start: str, text: str) -> None:
    (_, (cell,)) = csv.reader(io.StringIO(to_csv(Table("t", ("c",), ((f"{start}x{text}",),))), newline=""))
    assert cell.startswith("'")


def test_markdown_has_every_value_and_escapes_text() -> None:
    text = to_markdown(before_after(BEFORE, AFTER))
    for value in ("0.911", "0.011", "0.945", "0.904", "0.812", "0.271", "0.661", "0.550 (0.48–0.62)"):
        assert value in text
    hostile = to_markdown(Table("t", ("a|b",), (("x|y <img> `z` [l](http://e) \x1b[2J\n",),), ("n|<b>",)))
    assert "<img>" not in hostile
    assert "\x1b" not in hostile
    assert "x\\|y &lt;img&gt; \\`z\\` \\[l\\](http://e) \\\\x1b\\[2J\\\\n" in hostile
    assert "- n\\|&lt;b&gt;" in hostile


def test_terminal_fits_80_columns_and_shows_every_score() -> None:
    shown = _terminal(before_after(BEFORE, AFTER))
    plain = Console(width=80, file=io.StringIO(), color_system=None)
    plain.print(to_rich(before_after(BEFORE, AFTER)))
    output = plain.file
    assert isinstance(output, io.StringIO)
    lines = output.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(bool(re.match(" ?(Forget|Retain|Task|MIA|MMLU|Final)", line)) for line in lines) == 17
    assert not any("regurgitation" in line and "Task" not in line for line in lines)
    for value in ("0.911", "0.766", "0.011", "0.066", "0.703", "0.661"):
        assert value in shown


def test_terminal_obeys_nothing_in_model_text() -> None:
    hostile = "\x1b[2J\x1b]0;title\x07[bold red]hi[/] \x9b31m \u202egnp\r\t[link=http://e]"
    rows = [_prediction("a", text=hostile)]
    shown = _terminal(side_by_side(rows, rows, ids=["a"]), width=300)
    assert "\x1b[2J" not in shown
    assert "\x1b]" not in shown
    assert not any(character in shown for character in "\x07\x9b\u202e\r\t")
    for text in ("[bold red]hi[/]", "[link=http://e]"):
        assert text in shown
    for escape in ("\\x1b", "\\x07", "\\x9b", "\\u202e", "\\r", "\\t"):
        assert escape in shown


def test_side_by_side_pairs_by_id_and_split() -> None:
    before = [_prediction("a", text="old"), _prediction("b", split="retain", text="kept")]
    after = [_prediction("a", text="new"), _prediction("c", text="only after")]
    table = side_by_side(before, after, ids=["c", "b", "a", "unknown", "a"])
    assert table.rows == (
        ("forget", "prompt c", "answer c", None, "only after"),
        ("forget", "prompt a", "answer a", "old", "new"),
        ("retain", "prompt b", "answer b", "kept", None),
    )
    assert table.sections == (0, 2)
    assert table.notes


def test_side_by_side_shortens_and_says_so() -> None:
    rows = [_prediction("a", text="x" * 50)]
    (row,) = side_by_side(rows, rows, ids=["a"], max_characters=10).rows
    assert row[3] == "xxxxxxxxxx … (+40 characters)"
    assert shorten("short", None) == "short"


def test_side_by_side_marks_what_was_not_generated_to_its_end() -> None:
    whole = _prediction("a", text="old")
    table = side_by_side([whole], [replace(whole, generation="ne", is_cut=True)], ids=["a"])
    assert table.rows == (("forget", "prompt a", "answer a", "old", "ne [left here]"),)
    assert table.notes == ("[left here]: not generated to its end, since the answer could no longer be matched.",)
    assert side_by_side([whole], [whole], ids=["a"]).notes == ()


def _many() -> list[Prediction]:
    splits: tuple[SplitName, ...] = ("forget", "retain")
    kinds: tuple[Kind, ...] = ("completion", "question")
    return [
        _prediction(f"{split}-{task}-{kind}-{i}", split, task, kind)
        for split in splits
        for task in ("Task1", "Task2", "Task3")
        for kind in kinds
        for i in range(5)
    ]


def test_samples_mix_tasks_and_kinds_whatever_the_order() -> None:
    rows = _many()
    ids = pick_samples(rows, rows, num_per_split=3)
    assert len(ids) == 6
    chosen = {p.id: p for p in rows}
    assert [chosen[i].task for i in ids[:3]] == ["Task1", "Task2", "Task3"]
    assert {chosen[i].kind for i in ids[:3]} == {"completion", "question"}
    assert [chosen[i].split for i in ids] == ["forget"] * 3 + ["retain"] * 3
    assert pick_samples(rows[::-1], rows, num_per_split=3) == ids
    six = [chosen[i] for i in pick_samples(rows, rows, num_per_split=6) if chosen[i].split == "forget"]
    assert len({(p.task, p.kind) for p in six}) == 6


def test_samples_prefer_rows_that_both_evaluations_have() -> None:
    assert pick_samples([_prediction("a"), _prediction("b")], [_prediction("b")], num_per_split=5) == ("b",)
    assert pick_samples([], [_prediction("b")], num_per_split=5) == ("b",)
    assert pick_samples([], [], num_per_split=5) == ()


@given(st.text())
def test_visible_text_has_no_control_characters_and_keeps_the_rest(text: str) -> None:
    shown = visible(text)
    assert all(character == "\n" or character.isprintable() or character.isspace() for character in shown)
    assert not any(ord(c) < 32 and c != "\n" for c in shown)
    assert visible(shown) == shown
    assert "\n" not in visible_line(text)
    assert "\n" not in to_markdown_text(text)
    shown.encode("utf-8")


def test_visible_keeps_ordinary_writing() -> None:
    assert visible("Grüße, 日本語 – “quoted”, עברית, 🙂\nline") == "Grüße, 日本語 – “quoted”, עברית, 🙂\nline"
    assert visible(json.loads('"\\ud800\\u200b\\ufeff"')) == "\\ud800\\u200b\\ufeff"
    assert visible("\U000e0041") == "\\U000e0041"


def test_markup_marks_escapes_and_only_those() -> None:
    assert to_markup("<b>\x00\\x00") == '&lt;b&gt;<span class="escape">\\0</span>\\x00'
