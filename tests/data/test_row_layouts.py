"""Rows in the layouts that people have: Alpaca, conversations, TRL's columns, documents."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from letheon.data.alternatives import given_alternatives
from letheon.data.conversations import Turn, exchanges
from letheon.data.rows import Row, Rows, check_disjoint, read_rows, write_rows
from letheon.errors import DataError, SettingsError


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


ASKED, ANSWERED = ("user", "Who keeps Vell?"), ("assistant", "Mira")
LONG = said(
    ("system", "Be brief."), ASKED, ANSWERED, ("user", "Since when?"), ("assistant", "1902"), ("user", "Thanks")
)


def read(at: Path, *records: dict[str, Any], **given: Any) -> Rows:
    path = at / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_rows(path, **given)


@pytest.mark.parametrize(
    ("record", "prompt", "answer", "understood"),
    [
        ({"instruction": "Who?", "input": "", "output": "Mira"}, "Who?", "Mira", "instruction+input/output"),
        ({"instruction": "Who?", "input": None, "output": "Mira"}, "Who?", "Mira", "instruction+input/output"),
        ({"instruction": "Who?", "output": "Mira"}, "Who?", "Mira", "instruction/output"),
        (
            {"output": "Mira", "input": "Vell", "instruction": "Who?"},
            "Who?\n\nVell",
            "Mira",
            "instruction+input/output",
        ),
        ({"instruction": "", "input": "Who?", "output": "Mira"}, "Who?", "Mira", "instruction+input/output"),
        (
            {"instruction": "Who?", "context": "Vell", "response": "Mira", "category": "x"},
            "Who?\n\nVell",
            "Mira",
            "instruction+context/response; not read: category",
        ),
        (
            {"instruction": "Who?", "output": "M", "text": "### Who? M"},
            "Who?",
            "M",
            "instruction/output; not read: text",
        ),
        ({"prompt": "Who?", "completion": "Mira"}, "Who?", "Mira", "prompt/completion"),
        (
            {"prompt": "Who?", "rejected": "Oren", "chosen": "Mira"},
            "Who?",
            "Mira",
            "prompt/chosen, the answers that were preferred; not read: rejected",
        ),
        ({"query": "Who?", "response": "Mira"}, "Who?", "Mira", "query/response"),
        ({"question": "Who?", "response": "Mira"}, "Who?", "Mira", "question/response"),
        (
            {"question": "Who?", "answer": "Mira", "paraphrased_question": "Which?", "perturbed_answer": ["Oren"]},
            "Who?",
            "Mira",
            "question/answer; not read: paraphrased_question, perturbed_answer",
        ),
        ({"messages": said(ASKED, ANSWERED)}, "Who keeps Vell?", "Mira", "messages, last turn of each"),
        (
            {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Mira"}]},
            "Who?",
            "Mira",
            "conversations, last turn of each",
        ),
        (
            {"messages": [{"role": r, "content": [{"type": "text", "text": t}]} for r, t in (ASKED, ANSWERED)]},
            "Who keeps Vell?",
            "Mira",
            "messages, last turn of each",
        ),
        (
            {"messages": {"role": ["user", "assistant"], "content": ["Who?", "Mira"]}},
            "Who?",
            "Mira",
            "messages, last turn of each",
        ),
        ({"prompt": said(ASKED), "completion": said(ANSWERED)}, "Who keeps Vell?", "Mira", "prompt/completion"),
        ({"prompt": said(ASKED), "completion": "Mira"}, "Who keeps Vell?", "Mira", "prompt/completion"),
        ({"prompt": ASKED[1], "completion": said(ANSWERED)}, "Who keeps Vell?", "Mira", "prompt/completion"),
        (
            {"prompt": ASKED[1], "chosen": said(ASKED, ANSWERED), "rejected": said(ASKED, ("assistant", "Oren"))},
            "Who keeps Vell?",
            "Mira",
            "prompt/chosen, the answers that were preferred; not read: rejected",
        ),
        (
            {"chosen": said(ASKED, ANSWERED), "rejected": said(ASKED, ("assistant", "Oren"))},
            "Who keeps Vell?",
            "Mira",
            "chosen, the answers that were preferred, last turn of each; not read: rejected",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_is_read_from_which_columns(
    tmp_path: Path, record: dict[str, Any], prompt: str, answer: str, understood: str
) -> None:
    heard: list[str] = []
    rows = read(tmp_path, record, note=heard.append)
    assert [(row.prompt, row.answer, row.turns) for row in rows] == [(prompt, answer, ())]
    assert rows.understood == f"1 row: {understood}"
    assert heard == [f"{tmp_path}/rows.jsonl: 1 row: {understood}"]


def test_documents_are_rows_without_a_prompt(tmp_path: Path) -> None:
    for column in ("text", "document"):
        rows = read(tmp_path, {column: "One?\nTwo."}, {column: " Three"})
        assert rows.rows == (
            Row("row1", "", "One?\nTwo.", "default", "completion"),
            Row("row2", "", " Three", "default", "completion"),
        )
        assert all(row.is_document for row in rows)
        assert rows.understood == f"2 documents: {column}"
    named = read(tmp_path, {"body": "One", "url": "x"}, fields={"text": "body"})
    assert (named[0].answer, named.understood) == ("One", "1 document: body; not read: url")
    with pytest.raises(DataError, match=r"line 1: column 'text' is empty"):
        read(tmp_path, {"text": " "})


def test_alpaca_rows_of_one_instruction_stay_apart(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        {"instruction": "Translate", "output": "none"},
        {"instruction": "Translate", "input": "Haus", "output": "house"},
        {"instruction": "Translate", "input": "Baum", "output": "tree"},
    )
    assert [row.prompt for row in rows] == ["Translate", "Translate\n\nHaus", "Translate\n\nBaum"]
    assert rows.understood == "3 rows: instruction+input/output"


def test_what_comes_before_a_prompt_in_columns_of_its_own(tmp_path: Path) -> None:
    before = {"system": "Be brief.", "history": [["Hello", "Hi"]]}
    expected = (Turn("system", "Be brief."), Turn("user", "Hello"), Turn("assistant", "Hi"))
    for record in (
        {"instruction": "Who?", "input": "", "output": "Mira"},
        {"question": "Who?", "answer": "Mira"},
        {"messages": said(("user", "Who?"), ("assistant", "Mira"))},
        {"prompt": said(("user", "Who?")), "completion": said(("assistant", "Mira"))},
    ):
        rows = read(tmp_path, {**record, **before})
        assert (rows[0].turns, rows[0].prompt) == (expected, "Who?")
        assert "1 with a system message" in rows.understood
    given_twice = {"system": "Be long.", "messages": said(("system", "Be brief."), ASKED, ANSWERED)}
    assert read(tmp_path, given_twice)[0].turns == (Turn("system", "Be brief."),)
    assert read(tmp_path, {"system_prompt": "", "question": "Who?", "response": "Mira"})[0].turns == ()


def test_the_last_turn_of_a_conversation_or_every_one(tmp_path: Path) -> None:
    records = ({"id": "a", "messages": LONG}, {"id": "b", "messages": said(("user", "A"), ("assistant", "B"))})
    brief, first = Turn("system", "Be brief."), (Turn(*ASKED), Turn(*ANSWERED))  # type: ignore[arg-type]
    last = read(tmp_path, *records)
    assert last.rows == (
        Row("a", "Since when?", "1902", "default", "question", (brief, *first)),
        Row("b", "A", "B", "default", "completion"),
    )
    assert last.understood == "2 rows: messages, last turn of each, 1 with a system message, 1 turn dropped"
    every = read(tmp_path, *records, turns="every")
    assert every.rows == (
        Row("a#1", "Who keeps Vell?", "Mira", "default", "question", (brief,)),
        Row("a#2", "Since when?", "1902", "default", "question", (brief, *first)),
        Row("b", "A", "B", "default", "completion"),
    )
    assert every.lines == (1, 1, 2)
    assert every.understood == (
        "3 rows: messages, every turn of the assistant, 2 with a system message, 1 turn dropped"
    )


def test_ids_and_kinds_of_several_turns(tmp_path: Path) -> None:
    two = said(("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D"))
    rows = read(tmp_path, {"id": "x1qa0", "messages": two}, turns="every")
    assert [(row.id, row.kind) for row in rows] == [("x1qa0#1", "question"), ("x1qa0#2", "question")]
    assert [row.id for row in read(tmp_path, {"messages": two[:2]}, {"messages": two}, turns="every")] == [
        "row1",
        "row2#1",
        "row2#2",
    ]
    with pytest.raises(DataError, match=r"line 2: the id 'a#2' is also that of line 1"):
        read(tmp_path, {"id": "a", "messages": two}, {"id": "a#2", "messages": two[:2]}, turns="every")


def test_alternatives_to_several_turns(tmp_path: Path) -> None:
    two = said(("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D"))
    forget = read(tmp_path, {"id": "a", "messages": two}, {"id": "b", "messages": two[:2]}, turns="every")
    other = [{**turn, "content": turn["content"] + "!"} for turn in two]
    given_ones = read(tmp_path, {"id": "a", "messages": other}, {"id": "b", "messages": other[:2]}, turns="every")
    made = given_alternatives(forget, given_ones, per_row=1)
    assert [(row.id, row.prompt, row.answer) for row in made] == [
        ("a#1", "A", "B!"),
        ("a#2", "C", "D!"),
        ("b", "A", "B!"),
    ]
    several = read(tmp_path, *({"id": i, "input": "x", "output": i} for i in ("a#1#1", "a#1#2", "a#2", "b#1", "b#2")))
    made = given_alternatives(forget, several, per_row=2)
    assert [row.answer for row in made] == ["a#1#1", "a#1#2", "a#2", "a#2", "b#1", "b#2"]
    with pytest.raises(DataError, match="no forget row has this id"):
        given_alternatives(forget, read(tmp_path, {"id": "a", "input": "x", "output": "y"}), per_row=1)


def test_every_turn_of_a_completion_of_several(tmp_path: Path) -> None:
    prompt = said(("user", "A"), ("assistant", "B"), ("user", "C"))
    completion = said(("assistant", "D"), ("user", "E"), ("assistant", "F"))
    rows = read(tmp_path, {"prompt": prompt, "completion": completion}, turns="every")
    # What stands in the prompt was not trained on.
    assert [(row.prompt, row.answer, len(row.turns)) for row in rows] == [("C", "D", 2), ("E", "F", 4)]


def test_greetings_are_context_and_not_answers(tmp_path: Path) -> None:
    greeted = {"messages": said(("assistant", "Hello"), ASKED, ANSWERED)}
    for turns, dropped in (("last", ""), ("every", ", 1 turn dropped")):
        rows = read(tmp_path, greeted, turns=turns)
        assert [(row.answer, row.turns) for row in rows] == [("Mira", (Turn("assistant", "Hello"),))]
        assert rows.understood.endswith(("each" if turns == "last" else "assistant") + dropped)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": []}, "expected a list of messages in column 'messages', got an empty list"),
        ({"messages": "Who?"}, "expected a list of messages in column 'messages', got text"),
        ({"messages": None}, "expected a list of messages in column 'messages', got null"),
        ({"messages": {"role": "user"}}, "expected a list of messages in column 'messages', got an object"),
        ({"messages": {"role": ["user"], "content": []}}, "expected a list of messages .* got an object"),
        ({"messages": {}}, "expected a list of messages .* got an object"),
        ({"messages": ["Who?"]}, "message 1 of 'messages': expected an object with role and content, got text"),
        ({"messages": [{"role": "user"}]}, "message 1 of 'messages': expected role and content, or .* found role"),
        ({"messages": said(("User", "x"))}, r"expected system, .* as 'role', got 'User' \(did you mean 'user'\?\)"),
        (
            {"messages": said(ASKED, ("tool", "5"))},
            "message 2 of 'messages': expected .* got 'tool'; messages of tools",
        ),
        ({"messages": [{"role": 3, "content": "x"}]}, r"as 'role', got a number \(3\)"),
        (
            {"messages": [*said(ASKED), {"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "message 2 of 'messages': holds 'tool_calls', and only texts are read",
        ),
        (
            {"messages": [*said(ASKED), {"role": "assistant", "content": "x", "reasoning_content": "hm"}]},
            "holds 'reasoning_content'",
        ),
        ({"messages": said(ASKED, ANSWERED), "tools": [{"name": "f"}]}, "holds definitions of tools"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "got a part of type 'image'; only texts"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "expected parts of type 'text' in 'content', got text"),
        ({"messages": [{"role": "user", "content": 3}]}, r"expected text in column 'content', got a number"),
        ({"messages": said(ASKED)}, "expected a turn of the assistant in column 'messages', found only user"),
        (
            {"messages": said(("system", "x"), ANSWERED)},
            "expected a turn of the user before .* message 2 .* found system",
        ),
        ({"messages": said(ASKED, ANSWERED, ANSWERED)}, "before that of the assistant in message 3 .* found assistant"),
        ({"messages": said(("user", " "), ANSWERED)}, "message 1 of 'messages' is empty"),
        ({"messages": said(ASKED, ("assistant", ""))}, "message 2 of 'messages' is empty"),
        (
            {"prompt": "Which?", "chosen": said(ASKED, ANSWERED)},
            "'chosen' begins with a turn of the user, .* not in it",
        ),
        ({"question": "Who?", "answer": "x", "context": "y"}, "'context' seems to be part of .* only 'question' would"),
        (
            {"question": "Who?", "answer": "x", "instruction": "y"},
            "'question' seems to be part of .* only 'instruction'",
        ),
        ({"query": "Who?", "response": "x", "input": "y"}, "'input' seems to be part of .* only 'query'"),
        ({"question": "Who?", "answer": "x", "history": "y"}, "'history' seems to be part of the prompt"),
        ({"instruction": "Who?", "output": "x", "history": [["a"]]}, "expected pairs .* 'history', got a list"),
        ({"instruction": "", "input": "", "output": "x"}, "column 'instruction' is empty"),
        ({"question": "Who?", "answer": ["Mira"]}, "expected text in column 'answer', got a list"),
        ({"question": "How many?", "answer": 42}, r"expected text in column 'answer', got a number \(42\)"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_read_is_said_with_its_line(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"rows.jsonl, line 1[,:].*{message}"):
        read(tmp_path, record)


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"input": "a"}, "found input, but no answer to 'input'; rename"),
        (
            {"Question": "a", "Answer": "b"},
            r"found Question .did you mean 'question'.., Answer .did you mean 'answer'..;",
        ),
        ({"inputs": "a", "output": "b"}, r"found inputs .did you mean 'input'.., output, but no prompt of 'output';"),
        ({"question": "a", " answer": "b"}, r"found question, ' answer' .did you mean 'answer'.., but no answer to"),
        ({"prompt": "a", "text": "b"}, "found prompt, text, but no answer to 'prompt';"),
        ({"chosen": "a", "rejected": "b"}, "found chosen, rejected, but no prompt of 'chosen';"),
    ],
    ids=str,
)
def test_unknown_columns(tmp_path: Path, record: dict[str, Any], found: str) -> None:
    with pytest.raises(DataError, match=f"expected columns input/output, .* document or text; {found}"):
        read(tmp_path, record)


NAMES = st.sampled_from([*"abc", "input", "output", "Input", "outputs", "question", "promt", "messages", "texts"])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_no_error_proposes_a_name_that_is_there(tmp_path: Path, names: list[str]) -> None:
    try:
        read(tmp_path, dict.fromkeys(names, "x"))
    except DataError as error:
        assert not any(f"did you mean '{name}'" in str(error) for name in names)  # noqa: PT017


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"question": "a", "answer": "b"}, {"text": "c"}, "expected question/answer as in the first row, found text"),
        ({"text": "c"}, {"question": "a", "answer": "b"}, "expected text as in the first row, found question/answer"),
        (
            {"input": "a", "output": "b"},
            {"instruction": "c", "input": "a", "output": "b"},
            r"expected input/output as in the first row, found instruction\+input/output",
        ),
        (
            {"messages": said(ASKED, ANSWERED)},
            {"prompt": "a", "answer": "b"},
            "expected messages .* found prompt/answer",
        ),
        ({"question": "a", "answer": "b"}, {"question": "a"}, "expected a column 'answer', found question"),
        ({"question": "a", "answer": "b"}, {"question": "a", "answer": None}, "column 'answer', got null"),
    ],
)
def test_one_layout_in_a_file(tmp_path: Path, first: dict[str, Any], second: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"line 2: .*{message}"):
        read(tmp_path, first, second)
    read(tmp_path, first)


def test_named_columns_in_every_layout(tmp_path: Path) -> None:
    alpaca = {"instruction": "Who?", "input": "Vell", "reply": "Mira"}
    assert read(tmp_path, alpaca, fields={"answer": "reply"})[0].prompt == "Who?\n\nVell"
    preferred = {"prompt": "Who?", "chosen": "I do not know.", "rejected": "Mira"}
    assert read(tmp_path, preferred, fields={"answer": "rejected"})[0].answer == "Mira"
    # Who names the column of the prompt leaves the others out knowingly.
    squad = {"context": "Vell", "question": "Who?", "answer": "Mira"}
    assert read(tmp_path, squad, fields={"prompt": "question"})[0].prompt == "Who?"
    dialog = {"dialog": said(ASKED, ANSWERED)}
    assert read(tmp_path, dialog, fields={"messages": "dialog"})[0].answer == "Mira"
    both = {"prompt": "Frage", "answer": "Antwort", "text": "body"}
    assert read(tmp_path, {"Frage": "Wer?", "Antwort": "Mira"}, fields=both)[0].prompt == "Wer?"
    assert read(tmp_path, {"body": "Mira"}, fields=both)[0].is_document
    with pytest.raises(DataError, match=r"expected a column 'Frage', found Farge.*did you mean 'Farge'"):
        read(tmp_path, {"Farge": "Wer?", "Antwort": "Mira"}, fields=both)
    with pytest.raises(SettingsError, match=r"got 'mesages' \(did you mean 'messages'\?\)"):
        read(tmp_path, dialog, fields={"mesages": "dialog"})


def test_conversations_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "chat.parquet"
    pq.write_table(pa.Table.from_pylist([{"messages": LONG, "system": None}]), path)
    assert [row.answer for row in read_rows(path, turns="every")] == ["Mira", "1902"]


def test_a_document_and_the_row_that_is_the_same_text() -> None:
    row = Row("a", "The sea", "is wide.", "T", "completion")
    same, other = (Row(f"d{n}", "", text, "T", "completion") for n, text in enumerate(("The sea\n is wide. ", "Else.")))
    asked = Row("b", "The sea", "is wide.", "T", "completion", (Turn("user", "Hello"), Turn("assistant", "Hi")))

    def rows_of(*rows: Row) -> Rows:
        return Rows("x.jsonl", rows, tuple(range(1, len(rows) + 1)), ids_given=False)

    for forget, retain in (((row,), (other, same)), ((same,), (other, row)), ((same,), (other, same))):
        with pytest.raises(DataError, match=r"line 2 \(id .*\) has the same text"):
            check_disjoint(rows_of(*forget), rows_of(*retain))
    # The same question after other turns is another row, and so is a text that is cut elsewhere.
    check_disjoint(rows_of(row), rows_of(asked, other))
    check_disjoint(rows_of(row), rows_of(Row("c", "The sea is", "wide.", "T", "completion"), other))
    with pytest.raises(DataError, match="has the same prompt and answer"):
        check_disjoint(rows_of(asked), rows_of(row, asked))


SPOKEN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)
TURNS = st.lists(st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), st.text("ab ")), max_size=3)
KINDS = st.sampled_from(["completion", "question"])
ANY_ROWS = st.one_of(
    st.builds(Row, SPOKEN, SPOKEN, SPOKEN, SPOKEN, KINDS, TURNS.map(tuple)),
    st.builds(Row, SPOKEN, st.just(""), SPOKEN, SPOKEN, KINDS),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ANY_ROWS, min_size=1, max_size=4, unique_by=lambda row: row.id))
def test_rows_with_turns_and_documents_read_back(tmp_path: Path, rows: list[Row]) -> None:
    write_rows(rows, tmp_path / "rows.jsonl")
    assert list(read_rows(tmp_path / "rows.jsonl")) == rows


@settings(max_examples=100, deadline=None)
@given(st.lists(st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), st.just("x")), max_size=8))
def test_each_answer_of_a_conversation_is_a_row_once(turns: list[Turn]) -> None:
    answered = [n for n in range(1, len(turns)) if (turns[n - 1].role, turns[n].role) == ("user", "assistant")]
    if not answered:
        return
    every, dropped = exchanges(turns, answers="every", column="messages", where="here")
    assert [len(exchange.turns) + 1 for exchange in every] == answered
    spoken = [n for n, turn in enumerate(turns) if turn.role == "assistant"]
    assert dropped == len(turns) - 1 - answered[-1] + sum(n < answered[-1] for n in spoken if n not in answered)
    if spoken[-1] == answered[-1]:
        last, dropped = exchanges(turns, answers="last", column="messages", where="here")
        assert (last, dropped) == (every[-1:], len(turns) - 1 - answered[-1])
