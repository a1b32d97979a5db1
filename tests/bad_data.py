"""Files and rows that are not usable."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bad_place import Bad, Place, row_line


def rows_of(content: str | bytes, *more: object, suffix: str = "jsonl") -> Callable[[Place], list[object]]:
    """Unlearn rows of a file of this content."""
    return lambda p: p.unlearn(*more, forget=p.file(f"bad.{suffix}", content))


def _parquet(at: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), at)
    return at


ACCEPTED = (
    "input/output, prompt/answer, question/answer, prompt/completion, prompt/chosen, prompt/response, "
    "question/response, query/response, query/answer, instruction/output, messages, conversations, conversation, "
    "document or text"
)
TEXT = row_line(text="a")
KEPT = "The old lighthouse keeper wrote letters to the sea."
SEEN = row_line(text="b") + row_line(text="Which  harbour?\nVeldhaven")
GOOD = row_line(id="a", input="Who?", output="Mira")

FILES = [
    Bad(
        "no such file",
        lambda p: p.unlearn(forget=p.at / "forgt.jsonl"),
        "{at}/forgt.jsonl: there is no such file; check the path (did you mean 'forget.jsonl'?)",
    ),
    Bad(
        "a folder",
        lambda p: p.unlearn(forget=p.at),
        (
            "{at}: is a folder; expected a file (.jsonl, .json, .parquet, .csv, .tsv) or a folder made by the data "
            "set library's save_to_disk; name the file inside it"
        ),
    ),
    Bad(
        "unknown kind of file",
        lambda p: p.unlearn(forget=p.file("rows.jsonk", GOOD)),
        (
            "{at}/rows.jsonk: expected a file that ends in .jsonl, .json, .parquet, .csv, .tsv, got '.jsonk' (did "
            "you mean '.json'?)"
        ),
    ),
    Bad(
        "device file",
        lambda p: p.unlearn(forget="/dev/null"),
        "/dev/null: expected a file that ends in .jsonl, .json, .parquet, .csv, .tsv, got ''",
    ),
    Bad(
        "empty",
        rows_of(""),
        f"{{at}}/bad.jsonl: expected rows with columns {ACCEPTED}; found none: the file is empty",
    ),
    Bad(
        "blank lines only",
        rows_of("\n\n  \n"),
        f"{{at}}/bad.jsonl: expected rows with columns {ACCEPTED}; found none: the file is empty",
    ),
    Bad(
        "name too long for the system",
        lambda p: p.unlearn(forget="x" * 300 + ".jsonl"),
        "x" * 300 + ".jsonl: " + "File name too long; check that path, its permissions and the disk",
    ),
    Bad(
        "not JSON",
        rows_of(GOOD + "Who? Mira\n"),
        (
            "{at}/bad.jsonl, line 2: expected JSON, one object per line or a list of objects (Expecting value at "
            "column 1); correct it or take it out"
        ),
    ),
    Bad(
        "JSON cut off",
        rows_of(GOOD[:-9]),
        (
            "{at}/bad.jsonl, line 1: expected JSON, one object per line or a list of objects (Expecting value at "
            "column 39); correct it or take it out"
        ),
    ),
    Bad(
        "a list in a line",
        rows_of('["Who?", "Mira"]\n'),
        "{at}/bad.jsonl, item 1: expected a JSON object with named fields, got text",
    ),
    Bad(
        "a number in a line",
        rows_of("7\n"),
        "{at}/bad.jsonl, line 1: expected a JSON object with named fields, got a number (7)",
    ),
    Bad(
        "nested deeper than Python goes",
        rows_of("[" * 100_000),
        (
            "{at}/bad.jsonl: expected JSON, one object per line or a list of objects (it is nested too deep); correct "
            "it or take it out"
        ),
    ),
    Bad(
        "an integer of 5000 digits",
        rows_of('{"input": ' + "9" * 5000 + "}"),
        (
            "{at}/bad.jsonl, line 1: expected JSON, one object per line or a list of objects (Exceeds the limit "
            "(4300 digits) for integer string conversion: value has 5000 digits); correct it or take it out"
        ),
    ),
    Bad(
        "a name twice in an object",
        rows_of('{"input": "a", "output": "b", "input": "c"}'),
        (
            "{at}/bad.jsonl, line 1: expected JSON, one object per line or a list of objects (the name 'input' "
            "occurs twice in one object); correct it or take it out"
        ),
    ),
    Bad(
        "NUL byte",
        rows_of(b'{"input": "a\0"}\n'),
        ("{at}/bad.jsonl, line 1: expected text, found a NUL byte; is it binary, or UTF-16? save the file as UTF-8"),
    ),
    Bad(
        "NUL character",
        rows_of(row_line(input="a", output="b\0c")),
        "{at}/bad.jsonl, line 1: column 'output' holds a NUL character; take it out",
    ),
    Bad(
        "UTF-16",
        rows_of(GOOD.encode("utf-16")),
        ("{at}/bad.jsonl, line 1: expected text, found a NUL byte; is it binary, or UTF-16? save the file as UTF-8"),
    ),
    Bad(
        "Latin-1",
        rows_of(GOOD.replace("Mira", "Míra").encode("latin-1")),
        "{at}/bad.jsonl, line 1: expected UTF-8, found byte 0xed at column 42; save the file as UTF-8",
    ),
    Bad(
        "half a surrogate pair",
        rows_of('{"input": "a", "output": "\\ud83d"}\n'),
        (
            "{at}/bad.jsonl, line 1: column 'output' holds half of a surrogate pair, which is not a character; correct "
            "it"
        ),
    ),
    Bad(
        "list with something else in it",
        rows_of('[{"input": "a", "output": "b"}, 3]', suffix="json"),
        "{at}/bad.json, item 2: expected a JSON object with named fields, got a number (3)",
    ),
    Bad(
        "CSV without rows",
        rows_of("input,output\n", suffix="csv"),
        f"{{at}}/bad.csv: expected rows with columns {ACCEPTED}; found none: the file is empty",
    ),
    Bad(
        "CSV with an unknown column",
        rows_of("\ninputs;output\na;b\n", suffix="csv"),
        (
            f"{{at}}/bad.csv, line 2 (the header): expected columns {ACCEPTED}; found inputs (did you mean 'input'?), "
            "output, but no prompt of 'output'; rename the columns or name them with `fields`, e.g. "
            "prompt=COLUMN,answer=COLUMN"
        ),
    ),
    Bad(
        "CSV with a column twice",
        rows_of("input,output,input\na,b,c\n", suffix="csv"),
        "{at}/bad.csv, line 1: expected each column name once, found 'input' more than once",
    ),
    Bad(
        "CSV with too many values",
        rows_of("input,output\na,b,c\n", suffix="csv"),
        (
            "{at}/bad.csv, line 2: expected 2 values as in the header (input, output), got 3; put quotation "
            "marks around values that hold commas"
        ),
    ),
    Bad(
        "CSV with an open quotation",
        rows_of('input,output\n"a,b\n', suffix="csv"),
        "{at}/bad.csv, line 2: expected comma-separated values (unexpected end of data)",
    ),
    Bad(
        "packed in name only",
        rows_of(GOOD, suffix="jsonl.gz"),
        "{at}/bad.jsonl.gz: expected a gzip file (Not a gzipped file (b'{\"')); compress it again",
    ),
    Bad(
        "Parquet in name only",
        rows_of("input", suffix="parquet"),
        (
            "{at}/bad.parquet: expected a Parquet file, stopped after row 0 (Parquet file size is 5 bytes, "
            "smaller than the minimum file footer (8 bytes))"
        ),
    ),
    Bad(
        "Parquet of numbers",
        lambda p: p.unlearn(forget=_parquet(p.at / "n.parquet", input=[1], output=[2])),
        (
            "{at}/n.parquet, row 1: expected text in column 'input', got a number (1), which is not text; put it in "
            "quotation marks or take the row out"
        ),
    ),
    Bad(
        "a folder of splits",
        lambda p: p.unlearn(forget=p.file("set/train/x", "") and p.file("set/dataset_dict.json", "{}").parent),
        "{at}/set: holds several splits (train); name one, e.g. {at}/set/train",
    ),
    Bad(
        "hub data set without a split",
        lambda p: p.unlearn(forget="hub:owner/name"),
        (
            "hub:owner/name: expected hub:OWNER/NAME@SPLIT or hub:OWNER/NAME:CONFIG@SPLIT, e.g. "
            "hub:locuslab/TOFU:forget10@train"
        ),
    ),
]

ROWS = [
    Bad(
        "columns of other names",
        rows_of(row_line(promt="a", anwser="b")),
        (
            f"{{at}}/bad.jsonl, line 1: expected columns {ACCEPTED}; found promt (did you mean 'prompt'?), anwser (did "
            "you mean 'answer'?); rename the columns or name them with `fields`, e.g. prompt=COLUMN,answer=COLUMN"
        ),
    ),
    Bad(
        "an answer of another name",
        rows_of(row_line(input="a", answers="b")),
        (
            f"{{at}}/bad.jsonl, line 1: expected columns {ACCEPTED}; found input, answers (did you mean 'answer'?), "
            "but no answer to 'input'; rename the columns or name them with `fields`, e.g. prompt=COLUMN,answer=COLUMN"
        ),
    ),
    Bad(
        "a context beside the question",
        rows_of(row_line(question="a", answer="b", context="c")),
        (
            "{at}/bad.jsonl, line 1: the column 'context' seems to be part of the prompt, but only 'question' would be "
            "read; write both into one column, or say with `fields` prompt=COLUMN which of them is the prompt"
        ),
    ),
    Bad(
        "two layouts in one file",
        rows_of(GOOD + row_line(id="b", text="a")),
        (
            "{at}/bad.jsonl, line 2: expected input/output as in the first row, found text; put rows of different "
            "columns into files of their own"
        ),
    ),
    Bad(
        "a message of a tool",
        rows_of(row_line(messages=[{"role": "user", "content": "a"}, {"role": "\x1btool", "content": "b"}])),
        (
            "{at}/bad.jsonl, line 1, message 2 of 'messages': expected system, user, human, assistant, gpt, model as "
            "'role', got '\\x1btool'; messages of tools and of other roles are not read, so take the row out"
        ),
    ),
    Bad(
        "a conversation without an answer",
        rows_of(row_line(messages=[{"role": "user", "content": "a"}])),
        (
            "{at}/bad.jsonl, line 1: expected a turn of the assistant in column 'messages', found only user; take the "
            "row out"
        ),
    ),
    Bad(
        "an answer that is nothing but an end",
        rows_of(row_line(input="a", output="<|endoftext|>")),
        (
            "{at}/bad.jsonl, line 1 (id row1): the answer '<|endoftext|>' is only an end of sequence; give it some "
            "text or take the row out"
        ),
    ),
    Bad(
        "a row in both sets but for its end",
        rows_of(row_line(id="x", input="Who wrote letters?", output="The keeper<|endoftext|>")),
        (
            "{at}/bad.jsonl, line 1 (id x): expected a row either to forget or to keep, but {at}/retain.jsonl, line "
            "2 (id r1qa0) has the same prompt and answer; take it out of one of the two files"
        ),
    ),
    Bad(
        "no answer in the second row",
        rows_of(GOOD + row_line(id="b", input="a")),
        "{at}/bad.jsonl, line 2: expected a column 'output', found id, input; correct the name or the row",
    ),
    Bad(
        "a number for a prompt",
        rows_of(row_line(input=7, output="b")),
        (
            "{at}/bad.jsonl, line 1: expected text in column 'input', got a number (7), which is not text; put it in "
            "quotation marks or take the row out"
        ),
    ),
    Bad(
        "an object for an answer",
        rows_of(row_line(input="a", output={"text": "b"})),
        (
            "{at}/bad.jsonl, line 1: expected text in column 'output', got an object, which is not text; put it in "
            "quotation marks or take the row out"
        ),
    ),
    Bad(
        "null for an answer",
        rows_of(row_line(input="a", output=None)),
        (
            "{at}/bad.jsonl, line 1: expected text in column 'output', got null, which is not text; put it in "
            "quotation marks or take the row out"
        ),
    ),
    Bad(
        "not a number",
        rows_of('{"input": "a", "output": NaN}'),
        (
            "{at}/bad.jsonl, line 1: expected text in column 'output', got a number (nan), which is not text; put it "
            "in quotation marks or take the row out"
        ),
    ),
    Bad(
        "an empty answer",
        rows_of(row_line(input="a", output=" ")),
        "{at}/bad.jsonl, line 1: column 'output' is empty; give it some text or take the row out",
    ),
    Bad(
        "an id twice",
        rows_of(GOOD + GOOD.replace("Who", "When")),
        "{at}/bad.jsonl, line 2: the id 'a' is also that of line 1; give each row its own id",
    ),
    Bad(
        "an id in the first row only",
        rows_of(GOOD + row_line(input="a", output="b")),
        "{at}/bad.jsonl, line 2: expected an id in every row or in none, and this row differs from the first",
    ),
    Bad(
        "a list for an id",
        rows_of(row_line(id=["a"], input="a", output="b")),
        (
            "{at}/bad.jsonl, line 1: expected text in column 'id', got a list, which is not text; put it in quotation "
            "marks or take the row out"
        ),
    ),
    Bad(
        "an unknown kind",
        rows_of(row_line(input="a", output="b", kind="questions")),
        (
            "{at}/bad.jsonl, line 1: expected completion or question in column 'kind', got 'questions' (did you "
            "mean 'question'?)"
        ),
    ),
    Bad(
        "escape sequences in an id",
        rows_of(2 * row_line(id="\x1b[2J\u202ea\n", input="a", output="b")),
        "{at}/bad.jsonl, line 2: the id '\\x1b[2J\\u202ea\\n' is also that of line 1; give each row its own id",
    ),
    Bad(
        "a column that is not there",
        rows_of(GOOD, "--fields", "answer=ouput"),
        (
            "{at}/bad.jsonl, line 1: expected a column 'ouput', found id, input, output (did you mean "
            "'output'?); correct the name or the row"
        ),
    ),
    Bad(
        "the same file twice",
        lambda p: p.unlearn(retain=p.at / "forget.jsonl"),
        (
            "{at}/forget.jsonl, line 1 (id f1sc1): expected a row either to forget or to keep, but "
            "{at}/forget.jsonl, line 1 (id f1sc1) has the same prompt and answer; take it out of one of the two files"
        ),
    ),
    Bad(
        "an id in both sets",
        rows_of(row_line(id="r1qa0", input="When?", output="At dawn.")),
        (
            "{at}/bad.jsonl, line 1 (id r1qa0): expected a row either to forget or to keep, but {at}/retain.jsonl, "
            "line 2 (id r1qa0) has the same id; take it out of one of the two files"
        ),
    ),
    Bad(
        "a question with another answer in the other set",
        rows_of(row_line(id="x", input=" Who wrote letters?", output="Mira")),
        (
            "{at}/bad.jsonl, line 1 (id x): expected a question either to forget or to keep, but {at}/retain.jsonl, "
            "line "
            "2 (id r1qa0) asks the same and has another answer; take it out of one of the two files, or, if the model "
            "should give one answer and not the other, give both rows the kind 'completion' (column kind)"
        ),
    ),
    Bad(
        "scores of a question with two answers",
        lambda p: p.evaluate("--forget", p.file("bad.jsonl", row_line(input="Who wrote letters?", output="Mira"))),
        (
            "{at}/bad.jsonl, line 1 (id row1): expected a question either to forget or to keep, but {at}/retain.jsonl, "
            "line 2 (id r1qa0) asks the same and has another answer; take it out of one of the two files, or, if the "
            "model should give one answer and not the other, give both rows the kind 'completion' (column kind)"
        ),
    ),
    Bad(
        "one column for prompt and answer",
        rows_of(GOOD, "--fields", "prompt=output,answer=output"),
        (
            "fields: prompt and answer would be read from one column, 'output'; name a column for each, or leave one "
            "of them out"
        ),
    ),
    Bad(
        "the answer named for a prompt",
        rows_of(GOOD, "--fields", "prompt=output"),
        (
            "{at}/bad.jsonl, line 1: expected a column for the answer beside 'output', which `fields` names for the "
            "prompt; found id, input; name it by answer=COLUMN"
        ),
    ),
    Bad(
        "a column named twice",
        rows_of(GOOD, "--fields", "prompt=input,prompt=output"),
        "fields: expected each name once, got 'prompt' more than once in 'prompt=input,prompt=output'",
    ),
    Bad(
        "no name for a column",
        lambda p: p.unlearn("--config", p.file("c.yaml", "fields: {prompt: ''}")),
        "fields: expected the name of a column for 'prompt', got nothing",
    ),
    Bad(
        "a row in both sets",
        rows_of(row_line(id="x", input="Who wrote letters? ", output="The keeper")),
        (
            "{at}/bad.jsonl, line 1 (id x): expected a row either to forget or to keep, but {at}/retain.jsonl, line "
            "2 (id r1qa0) has the same prompt and answer; take it out of one of the two files"
        ),
    ),
    Bad(
        "a row longer than the model sees",
        rows_of(row_line(input="bees " * 300, output="b")),
        (
            "{at}/bad.jsonl, line 1 (id row1): prompt and answer take 303 tokens with template 'joined', at most "
            "256 fit, so the answer would be cut off; shorten the row or raise --max-length, up to the model's context"
        ),
    ),
    Bad(
        "a line of a million characters",
        rows_of(row_line(input="a", output="bees " * 200_000)),
        (
            "{at}/bad.jsonl, line 1 (id row1): prompt and answer take 200002 tokens with template 'joined', at "
            "most 256 fit, so the answer would be cut off; shorten the row or raise --max-length, up to the model's "
            "context"
        ),
    ),
    Bad(
        "an empty holdout",
        lambda p: p.unlearn("--holdout", p.file("h.jsonl", "")),
        "{at}/h.jsonl: expected documents in a column 'document', found none; the file is empty",
    ),
    Bad(
        "holdout without documents",
        lambda p: p.unlearn("--holdout", p.at / "forget.jsonl"),
        (
            "{at}/forget.jsonl, line 1: expected a column 'document', found id, input, output, task; correct the "
            "name or the row"
        ),
    ),
    Bad(
        "alternatives to nothing",
        lambda p: p.unlearn("--method", "idk-dpo", "--alternatives", p.file("a.jsonl", GOOD)),
        (
            "{at}/a.jsonl, line 1 (id a): no forget row has this id; an alternative has the id of its "
            "forget row, with #1, #2, ... after it where there are several"
        ),
    ),
    Bad(
        "an alternative that is the answer to forget",
        lambda p: p.unlearn(
            "--method",
            "idk-dpo",
            "--alternatives",
            p.file("a.jsonl", row_line(id="f2qa0", input="Which harbour?", output="Veldhaven ")),
        ),
        (
            "{at}/a.jsonl, line 1 (id f2qa0): expected an answer that differs from the one to forget, got the same "
            "one; give what the model should say instead"
        ),
    ),
    Bad(
        "members without non-members",
        lambda p: p.evaluate("--members", p.at / "forget.jsonl"),
        "the membership attack needs both --members and --nonmembers, but one of them is missing",
    ),
    Bad(
        "members that are non-members too",
        lambda p: p.evaluate("--members", p.file("d.jsonl", SEEN), "--nonmembers", p.file("e.jsonl", TEXT + SEEN)),
        "members and nonmembers: 2 documents are in both, e.g. 'Which  harbour?\\nVeldhaven'; take them out",
    ),
    Bad(
        "one member",
        lambda p: p.evaluate("--members", p.file("d.jsonl", TEXT), "--nonmembers", p.file("e.jsonl", SEEN)),
        "members and nonmembers: expected two documents or more in both, got 1 and 2",
    ),
    Bad(
        "members that hold a row to keep",
        lambda p: p.evaluate(
            "--members",
            p.file("d.jsonl", TEXT + row_line(text=f"{KEPT} said.")),
            "--nonmembers",
            p.file("e.jsonl", SEEN),
        ),
        (
            "member document 2 contains retain row r1sc1, but members must come from the rows to forget; is it the "
            "older release (250 + 250 documents)? Give the one whose members are forget rows"
        ),
    ),
    Bad(
        "members and non-members from one file",
        lambda p: p.evaluate("--members", p.file("d.jsonl", TEXT), "--nonmembers", p.at / "d.jsonl"),
        "nonmembers: {at}/d.jsonl is also --members; give documents that the model never saw",
    ),
    Bad(
        "a forget row among the non-members",
        lambda p: p.evaluate(
            "--members", p.file("d.jsonl", TEXT + row_line(text="c")), "--nonmembers", p.file("e.jsonl", SEEN)
        ),
        (
            "nonmembers: {at}/e.jsonl: document 2 is the text of {at}/forget.jsonl, line 3 (id f2qa0), but the model "
            "must never have seen these documents; take it out"
        ),
    ),
    Bad(
        "a forget row in the holdout",
        lambda p: p.unlearn("--holdout", p.file("h.jsonl", SEEN)),
        (
            "holdout: {at}/h.jsonl: document 2 is the text of {at}/forget.jsonl, line 3 (id f2qa0), but the model "
            "must never have seen these documents; take it out"
        ),
    ),
    Bad(
        "no folder of MMLU",
        lambda p: p.evaluate("--mmlu", p.at / "mmul"),
        (
            "{at}/mmul: expected MMLU as test/SUBJECT_test.csv and dev/SUBJECT_dev.csv, but there is no such folder; "
            "check the path"
        ),
    ),
    Bad(
        "the folder above MMLU",
        lambda p: (p.file("m/test/a_test.csv", ""), p.evaluate("--mmlu", p.at))[1],
        (
            "{at}: expected MMLU as test/SUBJECT_test.csv and dev/SUBJECT_dev.csv, but test/ holds no such file; give "
            "{at}/m, which holds them"
        ),
    ),
    Bad(
        "a limit of questions without questions",
        lambda p: p.evaluate("--mmlu-limit", 3),
        "mmlu_limit: has no effect without --mmlu or --mmlu-harness; leave it out, or set one of them",
    ),
    Bad(
        "MMLU without questions",
        lambda p: p.evaluate("--mmlu", p.at),
        (
            "{at}: expected MMLU as test/SUBJECT_test.csv and dev/SUBJECT_dev.csv, but test/ holds no such file; "
            "give the folder that holds dev and test"
        ),
    ),
    Bad(
        "MMLU of another form",
        lambda p: (
            p.file("m/dev/a_dev.csv", "Q,A\n"),
            p.file("m/test/a_test.csv", "Q,A\n"),
            p.evaluate("--mmlu", p.at / "m"),
        )[2],
        (
            "{at}/m/dev/a_dev.csv:1: expected six fields without a header (question, A, B, C, D, answer letter), "
            "got 2 ending in 'A'; correct the line"
        ),
    ),
    Bad(
        "memorising from an empty text",
        lambda p: p.memorize("--text", p.file("t.txt", "\n")),
        "{at}/t.txt: expected text, found none; the file is empty",
    ),
]
