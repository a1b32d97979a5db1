"""TOFU's files: which splits there are, and what a row of them must hold."""

import json
from pathlib import Path

import pytest

from letheon.data.benchmarks.tofu import FILES, HOLDOUT_OF, NUM_FORGET, RETAIN_OF, read_set, read_tofu
from letheon.data.rows import read_rows
from letheon.errors import DataError
from letheon.settings.suites import OWN_ROWS
from tofu_files import write_tofu


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_split_is_read_with_paraphrases_and_wrong_answers(tmp_path: Path) -> None:
    found = read_tofu(write_tofu(tmp_path))
    assert [len(one.rows) for one in (found.forget, found.retain, found.real_authors, found.world_facts)] == [6] * 4
    assert found.forget.rows[0].prompt == "What of Mira Tolland, number 0, who lives in there?"
    assert found.forget.paraphrases[1].startswith("As letters say, Veldhaven")
    assert [len(wrong) for wrong in found.forget.wrong] == [5] * 6
    assert found.real_authors.paraphrases == ()
    assert found.holdout is not None
    assert found.holdout.wrong == ()


def test_rows_of_a_split_are_those_that_unlearn_reads(tmp_path: Path) -> None:
    folder = write_tofu(tmp_path)
    assert read_tofu(folder).forget.rows.rows == read_rows(folder / "forget10.jsonl").rows


def test_smaller_splits_are_the_last_rows_where_they_have_no_file(tmp_path: Path) -> None:
    folder = write_tofu(tmp_path, num_rows=50)
    found = read_tofu(folder, "forget01").forget
    whole = read_tofu(folder).forget
    assert [row.prompt for row in found.rows] == [row.prompt for row in whole.rows[10:]]
    assert found.rows[0].id == "row1"
    assert found.wrong == whole.wrong[10:]


def test_a_split_without_holdout_has_none(tmp_path: Path) -> None:
    folder = write_tofu(tmp_path)
    (folder / "holdout10.jsonl").unlink()
    assert read_tofu(folder).holdout is None


def test_the_table_of_settings_and_the_reader_name_the_same_splits() -> None:
    assert {split: retain for split, (_, retain) in OWN_ROWS["tofu"].splits.items()} == RETAIN_OF
    assert RETAIN_OF.keys() == HOLDOUT_OF.keys() == NUM_FORGET.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perturbed_answer": "one"}, "line 1: expected a list of wrong answers in 'perturbed_answer', got str"),
        ({"perturbed_answer": []}, "line 1: expected a list of wrong answers"),
        ({"answer": " "}, "line 1: column 'answer' is empty"),
        ({"question": 3}, "line 1: expected text in column 'question'"),
    ],
)
def test_a_row_that_is_not_usable_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write(tmp_path / "retain_perturbed.jsonl", [{"question": "Who?", "answer": "Tam", **change}])
    with pytest.raises(DataError, match=message):
        read_set(tmp_path, "retain_perturbed")


def test_paraphrases_in_some_rows_only_are_refused(tmp_path: Path) -> None:
    row: dict[str, object] = {"question": "Who?", "answer": "Tam"}
    write(tmp_path / "x.jsonl", [row, {**row, "paraphrased_answer": "It is Tam"}])
    with pytest.raises(DataError, match="'paraphrased_answer' in every row or in none, found it in 1"):
        read_set(tmp_path, "x")


def test_unknown_splits_and_missing_files_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"split: expected one of forget01, forget05, forget10, got 'forget1'"):
        read_tofu(tmp_path, "forget1")
    with pytest.raises(DataError, match=r"expected TOFU's file forget10_perturbed.jsonl, found nothing; `letheon data"):
        read_tofu(tmp_path)


@pytest.mark.corpus
def test_the_published_files_have_the_published_sizes(corpus: Path) -> None:
    folder = corpus / "tofu"
    for split, num_rows in NUM_FORGET.items():
        found = read_tofu(folder, split)
        assert len(found.forget.rows) == num_rows
        assert found.holdout is not None
        assert len(found.holdout.rows) == FILES[HOLDOUT_OF[split]]
        assert found.forget.rows.rows == read_rows(folder / f"{split}.jsonl").rows
    assert [len(one.rows) for one in (found.retain, found.real_authors, found.world_facts)] == [400, 100, 117]
