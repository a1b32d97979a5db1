"""Rows whose texts hold the marks that a tokenizer writes around a text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from letheon import EvaluateSettings, MemorizeSettings, UnlearnSettings, evaluate, memorize
from letheon.data.ends import bare_rows, without_begin, without_ends
from letheon.data.rows import Row, Rows, Turn, write_rows
from letheon.errors import DataError
from letheon.unlearning.inputs import read_inputs
from running import events, run, short_run

END = "<|endoftext|>"


def rows_of(*rows: Row) -> Rows:
    return Rows("x.jsonl", rows, tuple(range(1, len(rows) + 1)), understood=f"{len(rows)} rows: question/answer")


def row(answer: str, prompt: str = "Who?", turns: tuple[Turn, ...] = ()) -> Row:
    return Row("a", prompt, answer, "T", "question", turns)


@pytest.mark.parametrize(
    ("answer", "bare"),
    [
        ("Mira", "Mira"),
        ("Mira</s>", "Mira"),
        ("Mira</s>\n", "Mira"),
        ("Mira </s>", "Mira "),
        ("Mira</s></s>", "Mira"),
        ("Mira<end></s>", "Mira"),
        ("</s> Mira", "</s> Mira"),
        ("Mira\n", "Mira\n"),
        (" Mira <s", " Mira <s"),
    ],
)
def test_ends_are_taken_off(answer: str, bare: str) -> None:
    found, num_ended = without_ends(rows_of(row(answer)), ["</s>", "<end>"])
    assert (found[0].answer, num_ended) == (bare, int(answer != bare))


def test_ends_of_earlier_turns_go_too_but_do_not_count() -> None:
    turns = (Turn("user", "Say </s>"), Turn("assistant", "Hi</s>"))
    found, num_ended = without_ends(rows_of(row("Mira", turns=turns)), ["</s>"])
    assert found[0].turns == (Turn("user", "Say </s>"), Turn("assistant", "Hi"))
    assert num_ended == 0


def test_an_answer_of_nothing_but_an_end() -> None:
    with pytest.raises(DataError, match=r"x.jsonl, line 2 \(id a\): the answer '</s>' is only an end"):
        without_ends(rows_of(row("Mira"), row("</s>")), ["</s>"])


def test_beginnings_are_taken_off_the_first_text() -> None:
    turns = (Turn("system", "<s>Be brief."),)
    given = rows_of(row("<s>b", "<s>a"), row("<s>a", ""), row("c", "<s>", ()), row("c", "<s>a", turns))
    found, num_begun = without_begin(given, "<s>")
    assert found.rows == (
        row("<s>b", "a"),
        row("a", ""),
        row("c", "<s>"),  # without it the row would be a document
        row("c", "<s>a", (Turn("system", "Be brief."),)),
    )
    assert num_begun == 3


@pytest.fixture
def llama_like(tokenizer: PreTrainedTokenizerFast) -> Any:
    """A tokenizer that begins every text with <s> and has an end of turn beside its end of sequence."""
    from copy import deepcopy

    changed = deepcopy(tokenizer)
    changed.add_special_tokens({"bos_token": "<s>", "unk_token": "<unk>"})
    changed.add_tokens([AddedToken("<end_of_turn>", special=True)], special_tokens=True)
    changed.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    begin = changed.convert_tokens_to_ids("<s>")
    changed.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return changed


def test_marks_are_those_of_the_tokenizer(tokenizer: PreTrainedTokenizerBase, llama_like: Any) -> None:
    marked = rows_of(row("Mira<end_of_turn>", "<s>Who?"), row(f"Mira{END}", "Where?"), row("Mira<unk>"))
    heard: list[str] = []
    bare = bare_rows(marked, llama_like, note=heard.append)
    assert bare.rows == (row("Mira"), row("Mira", "Where?"), row("Mira<unk>"))
    assert heard == [
        f"x.jsonl: of 3 rows 2 ended in {END} or <end_of_turn>, which was removed, 1 began with <s>, which was "
        f"removed; unlearn trains ends by --end-of-sequence"
    ]
    assert bare.understood == (
        f"3 rows: question/answer; 2 ended in {END} or <end_of_turn>, which was removed; 1 began with <s>, which was "
        f"removed"
    )
    # To a tokenizer without these they are text like any other.
    assert bare_rows(marked, tokenizer).rows == (marked[0], row("Mira", "Where?"), marked[2])
    unmarked = rows_of(row("Mira"))
    assert bare_rows(unmarked, llama_like, note=heard.append) == unmarked
    assert len(heard) == 1


@pytest.mark.slow
def test_a_run_and_an_evaluation_see_the_bare_rows(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    given = short_run(tmp_path, rows, model, tokenizer)
    names = {name: str(given[name]) for name in ("forget", "retain")}
    marked = {**names, "forget": str(tmp_path / "forget-eos.jsonl"), "alternatives": str(tmp_path / "others.jsonl")}
    ended = [replace(one, answer=one.answer + END) for one in rows]
    write_rows(ended[:3], Path(marked["forget"]))
    others = [replace(one, answer=f"Not {one.answer}") for one in rows[:3]]
    write_rows([replace(one, answer=one.answer + END) for one in others], Path(marked["alternatives"]))

    bare = read_inputs(UnlearnSettings.of(given))
    found = read_inputs(UnlearnSettings.of({**given, **marked, "method": "idk-dpo"}))
    assert found.sequences == bare.sequences
    assert found.alternatives is not None
    assert found.alternatives.rows == tuple(others)

    report = run(given, forget=marked["forget"])
    notes = [event["message"] for event in events(report.folder, "note")]
    said = f"{marked['forget']}: 3 rows: input/output; 3 ended in {END}, which was removed"
    assert notes[:2] == [said, f"{names['retain']}: 3 rows: input/output"]

    heard: list[str] = []
    scores = [
        evaluate(
            EvaluateSettings.of({**names, "forget": forget, "model": given["model"], "out": str(tmp_path / out)}),
            note=heard.append,
        )
        for out, forget in (("bare", names["forget"]), ("marked", marked["forget"]))
    ]
    assert scores[0].predictions == scores[1].predictions
    assert len(heard) == 5


def test_a_row_that_is_another_but_for_its_end(
    tmp_path: Path, rows: list[Row], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    given = short_run(tmp_path, rows, model, tokenizer)
    write_rows([replace(rows[3], id="other", answer=rows[3].answer + END)], Path(given["forget"]))
    with pytest.raises(DataError, match="has the same prompt and answer"):
        read_inputs(UnlearnSettings.of(given))
    settings = {name: given[name] for name in ("model", "forget", "retain")}
    with pytest.raises(DataError, match="has the same prompt and answer"):
        evaluate(EvaluateSettings.of({**settings, "out": str(tmp_path / "scores")}))


def test_memorising_says_what_it_read(tmp_path: Path, rows: list[Row]) -> None:
    write_rows([replace(one, answer=one.answer + END) for one in rows], tmp_path / "rows.jsonl")
    heard: list[str] = []
    given = {"rows": str(tmp_path / "rows.jsonl"), "out": str(tmp_path / "target"), "vocab_size": 300, "width": 16}
    memorize(MemorizeSettings.of({**given, "num_layers": 1, "num_heads": 1, "max_steps": 1}), note=heard.append)
    assert [message.partition(": ")[2] for message in heard] == [
        "6 rows: input/output",
        f"of 6 rows 6 ended in {END}, which was removed; unlearn trains ends by --end-of-sequence",
    ]
