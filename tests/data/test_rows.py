"""Reading, checking and writing rows, documents and general text."""

import csv
import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from letheon.data.records import open_records
from letheon.data.rows import Row, Rows, check_disjoint, read_documents, read_rows, read_text, write_rows
from letheon.errors import DataError, OutputError, SettingsError

GOOD = {"id": "a", "input": "The sea", "output": "is wide.", "task": "T"}

STORY = Row("s1sc1", "The sea", "is wide.", "Task1", "completion")
QUESTION = Row("s1qa0", "What is wide?", "The sea", "Task1", "question")


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_file(content: str | bytes, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


def rows_of(*rows: Row, ids_given: bool = True) -> Rows:
    return Rows("x.jsonl", rows, tuple(range(1, len(rows) + 1)), ids_given=ids_given)


def test_rows_keep_their_text_and_their_line(write: Callable[..., Path]) -> None:
    path = write('\ufeff{"id": 7, "input": " Où ?", "output": " ici\\n", "task": "T"}\n\n' + lines(GOOD))
    rows = read_rows(path)
    assert rows.rows == (
        Row("7", " Où ?", " ici\n", "T", "question"),
        Row("a", "The sea", "is wide.", "T", "completion"),
    )
    assert rows.lines == (1, 3)
    assert rows.describe(1) == f"{path}, line 3 (id a)"
    assert list(rows) == [rows[0], rows[1]]
    assert len(rows) == 2
    assert rows.select([1]).describe(0) == f"{path}, line 3 (id a)"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "Who?", "answer": "Me"}, Row("row1", "Who?", "Me", "default", "question")),
        ({"prompt": "I am", "answer": "me"}, Row("row1", "I am", "me", "default", "completion")),
        ({"question": "Name it", "answer": "x", "id": "q"}, Row("q", "Name it", "x", "default", "question")),
        ({"question": "a", "answer": "b", "id": 12.0}, Row("12", "a", "b", "default", "question")),
        ({"input": "a?", "output": "b", "id": "zsc1"}, Row("zsc1", "a?", "b", "default", "completion")),
        ({"input": "a", "output": "b", "id": "zqa4"}, Row("zqa4", "a", "b", "default", "question")),
        ({"input": "a", "output": "b", "id": "zqa14"}, Row("zqa14", "a", "b", "default", "completion")),
        ({"input": "a?", "output": "b", "kind": "completion"}, Row("row1", "a?", "b", "default", "completion")),
        ({"input": "a", "output": "b", "id": None, "task": ""}, Row("row1", "a", "b", "default", "completion")),
        ({"input": "a", "output": "b", "prompt": "c", "answer": "d"}, Row("row1", "a", "b", "default", "completion")),
    ],
)
def test_columns_and_kinds(write: Callable[..., Path], record: dict[str, Any], expected: Row) -> None:
    assert read_rows(write(lines(record))).rows == (expected,)


def test_fields_name_other_columns(write: Callable[..., Path]) -> None:
    path = write(lines({"nr": 3, "Frage": "Wer?", "output": "Ich", "art": "question", "thema": "T9"}))
    rows = read_rows(path, fields={"id": "nr", "prompt": "Frage", "kind": "art", "task": "thema"})
    assert rows.rows == (Row("3", "Wer?", "Ich", "T9", "question"),)
    assert rows.ids_given


@pytest.mark.parametrize("suffix", ["json", "csv", "parquet", "jsonl.json"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    records = [
        {"id": "a", "input": 'He said "no",\nthen left', "output": "x,y", "task": "T"},
        {"id": "b", "input": "What?", "output": "é", "task": "T"},
    ]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "json":
        path.write_text(" \n" + json.dumps(records, indent=1))
    elif suffix == "jsonl.json":
        path.write_text(lines(*records))
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    rows = read_rows(path)
    assert [row.prompt for row in rows] == ['He said "no",\nthen left', "What?"]
    assert [row.answer for row in rows] == ["x,y", "é"]
    # The first CSV row covers lines 2 and 3, since its prompt holds a line break.
    places = {
        "json": ("item", (1, 2)),
        "parquet": ("row", (1, 2)),
        "csv": ("line", (2, 4)),
        "jsonl.json": ("line", (1, 2)),
    }
    assert (rows.unit, rows.lines) == places[suffix]


QUESTIONS = {"question": ["Who, then?", "Where?"], "answer": ["Mira; Oren", "At\tVell"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.tsv", 'question\tanswer\r\nWho, then?\tMira; Oren\r\nWhere?\t"At\tVell"\r\n'),
        ("rows.csv", 'question\tanswer\nWho, then?\tMira; Oren\nWhere?\t"At\tVell"\n'),
        ("rows.csv", '\ufeffquestion;answer\r\nWho, then?;"Mira; Oren"\r\nWhere?;At\tVell\r\n'),
        ("rows.csv", 'question,answer\n"Who, then?",Mira; Oren\nWhere?,At\tVell\n'),
        (
            "rows.jsonl",
            json.dumps([{name: column[row] for name, column in QUESTIONS.items()} for row in (0, 1)], indent=1),
        ),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_other_separators_lists_and_packed_files(tmp_path: Path, name: str, content: str, packed: bool) -> None:
    path = tmp_path / (f"{name}.GZ" if packed else name)
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    rows = read_rows(path)
    assert [row.prompt for row in rows] == QUESTIONS["question"]
    assert [row.answer for row in rows] == QUESTIONS["answer"]
    assert rows.describe(1) == f"{path}, {'item 2' if name.endswith('l') else 'line 3'} (id row2)"


@pytest.mark.parametrize(
    ("name", "content", "columns", "first"),
    [
        # A comma in the header, and in each row, but in quotation marks.
        ("a.csv", 'question;"answer, short";id\nWho?;"Mira, I think";1\nWhere?;"Here, or so";2\n', 3, "Mira, I think"),
        # As many commas in the rows as in the header, by chance, in one row only.
        ("a.csv", "question, any;answer\nWho, then?;Mira\nWhere?;Vell\n", 2, "Mira"),
        # Semicolons in the header and in each row, but in quotation marks.
        ("a.csv", '"question; any",answer\n"Who; then?",Mira\n"Where; so?",Vell\n', 2, "Mira"),
        ("a.csv", 'question\t"answer, short"\nWho?\t"Mira, or; so"\n', 2, "Mira, or; so"),
        # A file that is called .tsv and has commas, and one that has tabs as it says.
        ("a.tsv", 'question,"answer\tshort"\nWho?,"Mira\t1"\n', 2, "Mira\t1"),
        ("a.tsv", 'question\t"answer, short"\nWho, then?\tMira, she\n', 2, "Mira, she"),
        # Doubled quotation marks and line breaks inside of quoted values.
        ("a.csv", 'question;answer\n"Who ""A, B""?";"Mira,\n""so, they say"""\n', 2, 'Mira,\n"so, they say"'),
        ("a.csv", '\n\nquestion;"answer,\nlong"\n"a, b";"c, d"\n', 2, "c, d"),
        # Both marks fit equally well: the one that the name says.
        ("a.csv", "question,answer;id\nWho?,Mira;1\n", 2, "Mira;1"),
        ("a.csv", "question,answer;id\n", 2, None),
        # Most rows agree, one does not, which is said when it is read.
        ("a.csv", "question;answer, long\nWho?;Mira\nWhere?;Vell\na;b;c\n", 2, "Mira"),
        # Only the beginning is looked at, which may end in the middle of a value.
        ("a.csv", "question;answer\n" + 198 * "a, b;c, d\n" + '"e\n, f";g\n', 2, "c, d"),
    ],
)
def test_the_columns_are_separated_by_what_header_and_rows_agree_on(
    write: Callable[..., Path], name: str, content: str, columns: int, first: str | None
) -> None:
    record = next(open_records(write(content, name)).entries, None)
    if first is None:
        assert record is None
        return
    assert record is not None
    assert len(record[1]) == columns
    assert list(record[1].values())[1] == first


@given(
    rows=st.lists(st.tuples(*2 * [st.text("abc,;\t\n\" '", min_size=1)]), min_size=1, max_size=5),
    delimiter=st.sampled_from([",", ";", "\t"]),
)
@settings(max_examples=200, deadline=None)
def test_quoted_tables_are_read_whatever_separates_them(rows: list[tuple[str, str]], delimiter: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
            writer.writerows([("input, a; b", "output\tc"), *rows])
        read = [tuple(record.values()) for _, record in open_records(path).entries]
    assert read == rows


def test_packed_files_that_are_none(tmp_path: Path, write: Callable[..., Path]) -> None:
    packed = gzip.compress(lines(GOOD).encode())
    for content, message in (
        (lines(GOOD).encode(), r"rows.jsonl.gz: expected a gzip file \(Not a gzipped file"),
        (packed[:-9], "expected a gzip file .*ended before the end-of-stream marker"),
        (packed[:20] + b"\0\0" + packed[22:], "expected a gzip file"),
        (b"", "the file is empty"),
    ):
        with pytest.raises(DataError, match=message):
            read_rows(write(content, "rows.jsonl.gz"))
    # A table is packed inside, and an archive is no table.
    with pytest.raises(DataError, match=r"expected a file that ends in .*got '.gz'"):
        read_rows(tmp_path / "rows.parquet.gz")


def test_csv_reads_long_fields_and_leaves_the_limit_as_it_was(write: Callable[..., Path]) -> None:
    limit = csv.field_size_limit()
    assert len(read_rows(write("input,output\n" + "x" * 200_000 + ",y\n", "rows.csv"))[0].prompt) == 200_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines(GOOD) + "{oops\n", r"rows.jsonl, line 2: expected JSON.*Expecting property name"),
        ("[" * 100_000, r"rows.jsonl: expected JSON.*nested too deep"),
        ("[1]\n", r"item 1: expected a JSON object with named fields, got a number"),
        ("{}\n[1]\n", r"line 1: expected columns"),
        (lines(GOOD) + "[1]\n", r"line 2: expected a JSON object with named fields, got a list"),
        ("null\n", r"line 1: expected a JSON object with named fields, got null"),
        (
            lines({"inputs": "a", "output": "b"}),
            r"line 1: expected columns input/output.*found inputs .did you mean 'input'.., output, but",
        ),
        (lines({"x": "a"}), r"line 1: expected columns input/output.*found x; rename"),
        ("{}\n", r"line 1: expected columns input/output.*found none; rename"),
        (lines(GOOD, {"id": "b", "input": "a"}), r"line 2: expected a column 'output', found id, input"),
        (lines(GOOD | {"output": ""}), r"line 1: column 'output' is empty"),
        (lines(GOOD | {"output": " \n\t"}), r"line 1: column 'output' is empty"),
        (lines(GOOD | {"input": " "}), r"line 1: column 'input' is empty"),
        (
            lines(GOOD | {"output": 5}),
            r"line 1: expected text in column 'output', got a number \(5\), which is not text",
        ),
        (lines(GOOD | {"output": None}), r"line 1: expected text in column 'output', got null"),
        (lines(GOOD | {"input": ["a"]}), r"line 1: expected text in column 'input', got a list"),
        (lines(GOOD | {"input": {"a": 1}}), r"line 1: expected text in column 'input', got an object"),
        (lines(GOOD | {"id": True}), r"line 1: expected text in column 'id', got true"),
        (lines(GOOD | {"id": 1.5}), r"line 1: expected text in column 'id', got a number"),
        (lines(GOOD | {"id": 2.0**53}), r"line 1: expected text in column 'id', got a number"),
        (lines(GOOD | {"task": 3}), r"line 1: expected text in column 'task', got a number"),
        (lines(GOOD | {"kind": "questoin"}), r"line 1: expected completion or question.*'questoin'.*mean 'question'"),
        (lines(GOOD, GOOD), r"line 2: the id 'a' is also that of line 1"),
        (lines(GOOD | {"id": "7"}, GOOD | {"id": 7}), r"line 2: the id '7' is also that of line 1"),
        (lines(GOOD, {"input": "a", "output": "b"}), r"line 2: expected an id in every row or in none"),
        (lines({"input": "a", "output": "b"}, GOOD), r"line 2: expected an id in every row or in none"),
        (lines(GOOD | {"output": "a\0b"}), r"line 1: column 'output' holds a NUL"),
        (lines(GOOD | {"output": "a\ud800b"}), r"line 1: column 'output' holds half of a surrogate pair"),
        (lines(GOOD).encode() + b'{"id": "\0"}', r"line 2: expected text, found a NUL byte"),
        (lines(GOOD).encode() + b'{"id": "\xff"}', r"line 2: expected UTF-8, found byte 0xff at column 9"),
        (lines(GOOD).encode("utf-16"), r"line 1: expected text, found a NUL byte; is it binary, or UTF-16"),
        ("", r"rows.jsonl: expected rows with columns input/output.*the file is empty"),
        ("\n \n", r"the file is empty"),
    ],
)
def test_errors_name_the_line(write: Callable[..., Path], content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(write(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("input,output\na,b\nc\n", r"rows.csv, line 3: expected 2 values as in the header \(input, output\), got 1"),
        ("input,output\na,b,c\n", r"line 2: expected 2 values.*got 3; put quotation marks"),
        ("input;output\na;b;c\n", r"line 2: expected 2 values.*got 3; .* around values that hold semicolons"),
        ('input\toutput\na\t"b\n', r"line 2: expected tab-separated values"),
        ("text\na,b\n", r"line 2: expected 1 values as in the header \(text\), got 2"),
        ('input,output\na,"b\n', r"line 2: expected comma-separated values \(unexpected end of data\)"),
        ("input,output,input\na,b,c\n", r"line 1: expected each column name once, found 'input'"),
        ('input,output\n"x\ny",b\nc,\n', r"line 4: column 'output' is empty"),
        ("input,output\n", r"the file is empty"),
        ("", r"the file is empty"),
        (b"input,output\na,\xe9\n", r"line 2: expected UTF-8"),
    ],
)
def test_csv_errors(write: Callable[..., Path], content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(write(content, "rows.csv"))


def test_parquet_errors(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "input": ["x", "y"], "output": ["z", None]}), path)
    with pytest.raises(DataError, match=r"bad.parquet, row 2: expected text in column 'output', got null"):
        read_rows(path)
    with pytest.raises(DataError, match=r"rows.parquet: expected a Parquet file, stopped after row 0"):
        read_rows(write("not parquet at all", "rows.parquet"))
    binary = pa.array([b"\xff\xfe"], pa.binary())
    pq.write_table(pa.table({"input": binary, "output": binary}), path)
    with pytest.raises(DataError, match="row 1: expected text in column 'input', got a value of type bytes"):
        read_rows(path)


def test_json_list_errors_count_items(write: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"rows.json, item 2: expected a JSON object with named fields, got text"):
        read_rows(write(json.dumps([GOOD, "x"]), "rows.json"))
    with pytest.raises(DataError, match=r"rows.json: expected JSON"):
        read_rows(write("[1, ", "rows.json"))


def test_sources_that_are_not_files(tmp_path: Path, write: Callable[..., Path]) -> None:
    write(lines(GOOD))
    with pytest.raises(DataError, match=r"there is no such file; check the path \(did you mean 'rows.jsonl'\?\)"):
        read_rows(tmp_path / "row.jsonl")
    with pytest.raises(
        DataError, match=r"expected a file that ends in .jsonl.*got '.josnl' \(did you mean '.jsonl'\?\)"
    ):
        read_rows(tmp_path / "rows.josnl")
    with pytest.raises(DataError, match=r"is a folder; expected a file .* save_to_disk"):
        read_rows(tmp_path)
    with pytest.raises(DataError, match=r"there is no such file"):
        read_rows(tmp_path / "nowhere" / "row.jsonl")


def test_unreadable_file(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(lines(GOOD))

    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"rows.jsonl: cannot be read \(Permission denied\)"):
        read_rows(path)


def test_unknown_or_missing_fields(write: Callable[..., Path]) -> None:
    path = write(lines(GOOD))
    with pytest.raises(SettingsError, match=r"got 'promt' \(did you mean 'prompt'\?\)"):
        read_rows(path, fields={"promt": "input"})
    with pytest.raises(DataError, match=r"line 1: expected a column 'inptu', found id, input.*did you mean 'input'"):
        read_rows(path, fields={"prompt": "inptu"})


def test_saved_data_set_folder(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list([GOOD, GOOD | {"id": "b"}])
    dataset.save_to_disk(str(tmp_path / "one"))
    assert [row.id for row in read_rows(tmp_path / "one")] == ["a", "b"]
    assert read_rows(tmp_path / "one").describe(1).endswith("one, row 2 (id b)")
    datasets.DatasetDict({"train": dataset}).save_to_disk(str(tmp_path / "many"))
    with pytest.raises(DataError, match=r"holds several splits \(train\); name one, e.g. .*many/train"):
        read_rows(tmp_path / "many")
    assert len(read_rows(tmp_path / "many" / "train")) == 2
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be loaded as a saved data set"):
        read_rows(tmp_path / "one")


def test_hub_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load(name: str, config: str | None, *, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        return datasets.Dataset.from_list([{"question": "Who?", "answer": "Me"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_rows("hub:owner/name:forget10@train").rows == (Row("row1", "Who?", "Me", "default", "question"),)
    assert read_rows("hub:owner/name@test[:1]").describe(0) == "hub:owner/name@test[:1], row 1 (id row1)"
    assert asked == [("owner/name", "forget10", "train"), ("owner/name", None, "test[:1]")]
    with pytest.raises(DataError, match="expected hub:OWNER/NAME@SPLIT"):
        read_rows("hub:owner/name")


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach 'owner/name'\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        DataError, match=r"hub:owner/name@train: cannot be loaded .*Couldn't reach 'owner/name'\); check"
    ):
        read_rows("hub:owner/name@train")


def test_a_row_in_both_sets() -> None:
    forget, other = rows_of(STORY), Row("other", "The sky", "is blue.", "Task1", "completion")
    check_disjoint(forget, rows_of(other))
    same_text = Row("new", "The sea ", "is wide.", "Task1", "completion")
    with pytest.raises(DataError, match=r"line 1 \(id s1sc1\).*line 2 \(id new\) has the same prompt and answer"):
        check_disjoint(forget, rows_of(other, same_text))
    same_id = Row("s1sc1", "The sky", "is blue.", "Task1", "completion")
    with pytest.raises(DataError, match=r"has the same id; take it out"):
        check_disjoint(forget, rows_of(same_id))
    # Ids that are only row numbers mean nothing across files.
    check_disjoint(forget, rows_of(same_id, ids_given=False))
    # The same prompt with another answer may be kept.
    check_disjoint(forget, rows_of(Row("x", "The sea", "is deep.", "Task1", "completion")))


def test_written_rows_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    rows = (STORY, QUESTION, Row("plain", "Nu?\u2028é", "a\n", "T", "completion"))
    write_rows(rows, path)
    assert read_rows(path).rows == rows
    assert set(json.loads(path.read_text().split("\n")[0])) == {"id", "input", "output", "task"}
    assert [p.name for p in path.parent.iterdir()] == ["rows.jsonl"]
    odd = (STORY, Row("x", "Is it?", "yes", "T", "completion"))
    write_rows(odd, path)
    assert read_rows(path).rows == odd


def test_rows_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        write_rows([STORY], tmp_path / "file" / "rows.jsonl")


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(Row, TEXTS, TEXTS, TEXTS, TEXTS, st.sampled_from(["completion", "question"])),
        min_size=1,
        unique_by=lambda row: row.id,
    )
)
def test_any_rows_read_back(tmp_path: Path, rows: list[Row]) -> None:
    write_rows(rows, tmp_path / "rows.jsonl")
    assert list(read_rows(tmp_path / "rows.jsonl")) == rows


FRAGMENTS = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from(
            [
                b'{"input": "a", "output": "b"}\n',
                b"input,output\n",
                b"a,b\n",
                b'"',
                b"[",
                b"]",
                b"\xef\xbb\xbf",
                b"PAR1",
            ]
        ),
    ),
    max_size=6,
).map(b"".join)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=FRAGMENTS, suffix=st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]))
def test_any_bytes_give_rows_or_one_error(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(content)
    try:
        rows = read_rows(path)
    except DataError as error:
        assert str(error).startswith(str(path))  # noqa: PT017
    else:
        assert all(row.prompt.strip() and row.answer.strip() for row in rows)


def test_documents(write: Callable[..., Path]) -> None:
    assert read_documents(write(lines({"document": "One.\nTwo."}, {"document": "Three"}))) == ["One.\nTwo.", "Three"]
    assert read_documents(write("text\nabc\n", "d.csv")) == ["abc"]
    for content, message in (
        (lines({"document": " "}), r"line 1: column 'document' is empty"),
        (lines({"docs": "a"}), r"line 1: expected a column 'document', found docs"),
        (lines({"document": "a"}, {"document": 1}), r"line 2: expected text in column 'document', got a number"),
        ("", r"expected documents in a column 'document', found none"),
    ):
        with pytest.raises(DataError, match=message):
            read_documents(write(content))


def test_general_text(tmp_path: Path, write: Callable[..., Path]) -> None:
    assert read_text(write("\n = A = \n \r\nb\nc\n\n\n\nd", "t.txt")) == ["= A =", "b\nc", "d"]
    assert read_text(write(lines({"text": "a\n\nb"}))) == ["a\n\nb"]
    with pytest.raises(DataError, match="expected text, found none"):
        read_text(write(" \n", "t.txt"))
    with pytest.raises(DataError, match=r"t.txt, line 2: expected UTF-8"):
        read_text(write(b"a\n\xff\n", "t.txt"))
    with pytest.raises(DataError, match="there is no such file"):
        read_text(tmp_path / "none.txt")


def test_reading_needs_no_heavy_library(write: Callable[..., Path]) -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'pyarrow', 'pandas', 'numpy'}"
    code = f"import sys; from letheon.data.rows import read_rows; read_rows({str(write(lines(GOOD)))!r}); "
    source = Path(sys.modules["letheon.data.rows"].__file__ or "").parents[2]
    loaded = subprocess.run(
        [sys.executable, "-c", code + f"print(sorted({heavy} & set(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(source)},
    )
    assert loaded.stdout.strip() == "[]"


@pytest.mark.corpus
def test_tofu_reads(corpus: Path) -> None:
    forget, retain = read_rows(corpus / "tofu" / "forget10.jsonl"), read_rows(corpus / "tofu" / "retain90.jsonl")
    assert (len(forget), len(retain)) == (400, 3600)
    assert {row.kind for row in forget} == {"question"}
    check_disjoint(forget, retain)


@pytest.mark.corpus
def test_membership_documents_read(corpus: Path) -> None:
    for folder, count in (("mia", 150), ("mia/validation", 34)):
        for name in ("member", "nonmember"):
            assert len(read_documents(corpus / "semeval" / folder / f"{name}.jsonl")) == count
