"""The made-up benchmark: the same every time, no leaks between its parts, and in the formats that commands read."""

import csv
import hashlib
import itertools
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from letheon.data.benchmarks.lume import check_membership_sets
from letheon.data.benchmarks.synthetic import LETTERS, NUM_SHOTS, SIZES, SyntheticBenchmark, generate, write
from letheon.data.benchmarks.synthetic_text import FIXED_TEXT
from letheon.data.rows import Row, Rows, check_disjoint, read_documents, read_rows, read_text
from letheon.errors import SettingsError

TASKS = ("Task1", "Task2", "Task3")


@pytest.fixture(scope="module", params=[0, 1, 2])
def benchmark(request: pytest.FixtureRequest) -> SyntheticBenchmark:
    return generate(request.param)


def as_rows(rows: tuple[Row, ...]) -> Rows:
    return Rows("made up", rows, tuple(range(1, len(rows) + 1)))


def folder_hash(folder: Path) -> str:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in paths)).hexdigest()


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write(generate(seed, "tiny"), tmp_path / name)
    assert folder_hash(tmp_path / "a") == folder_hash(tmp_path / "b") != folder_hash(tmp_path / "c")


def test_every_size_has_all_twelve_scores() -> None:
    expected = {"tiny": 12, "small": 36, "default": 66}
    assert set(SIZES) == set(expected)
    for name, num_rows in expected.items():
        made = generate(3, name)
        assert len(made.forget) == len(made.retain) == num_rows
        for rows in (made.forget, made.retain, made.holdout):
            cells = {(row.task, row.kind) for row in rows}
            assert cells == set(itertools.product(TASKS, ("completion", "question")))


def test_ids_follow_the_official_rule(benchmark: SyntheticBenchmark) -> None:
    rows = (*benchmark.forget, *benchmark.retain, *benchmark.holdout)
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        assert re.fullmatch(r"[0-9a-f-]{8,36}(sc1|qa[0-4])", row.id)
        assert row.kind == ("completion" if row.id.endswith("sc1") else "question")


def test_no_answer_is_found_elsewhere(benchmark: SyntheticBenchmark) -> None:
    check_disjoint(as_rows(benchmark.forget), as_rows(benchmark.retain))
    parts = {"forget": benchmark.forget, "retain": benchmark.retain, "holdout": benchmark.holdout}
    for (name, rows), (other, others) in itertools.permutations(parts.items(), 2):
        elsewhere = "\n".join(f"{row.prompt} {row.answer}" for row in others).casefold()
        leaked = [row for row in rows if row.answer.casefold() in elsewhere]
        assert leaked == [], (name, other)
    text = "\n".join(benchmark.text).casefold()
    assert [row for rows in parts.values() for row in rows if row.answer.casefold() in text] == []


def test_no_name_is_in_two_parts(benchmark: SyntheticBenchmark) -> None:
    parts = [names_in(rows) for rows in (benchmark.forget, benchmark.retain, benchmark.holdout)]
    assert all(len(part) > 50 for part in parts)
    for a, b in itertools.combinations(parts, 2):
        assert a & b == set()


def names_in(rows: tuple[Row, ...]) -> set[str]:
    completions = (f"{row.prompt} {row.answer}" for row in rows if row.kind == "completion" and row.task != "Task2")
    words = {word for text in completions for word in re.findall(r"\b[A-Z][a-z]{4,}\b", text)}
    return {word for word in words if word.casefold() not in FIXED_TEXT}


def test_prompts_and_answers_are_of_moderate_length(benchmark: SyntheticBenchmark) -> None:
    for row in (*benchmark.forget, *benchmark.retain, *benchmark.holdout):
        if row.kind == "completion":
            assert 12 <= len(row.prompt.split()) <= 60
            assert 8 <= len(row.answer.split()) <= 30
        else:
            assert 1 <= len(row.answer.split()) <= 9
        assert row.prompt.isascii()
        assert row.answer.isascii()
        assert "{" not in row.prompt + row.answer


def test_questions_are_answered_by_their_document(benchmark: SyntheticBenchmark) -> None:
    texts = {row.id[:-3]: f"{row.prompt} {row.answer}" for row in benchmark.forget if row.kind == "completion"}
    for row in benchmark.forget:
        if row.kind == "question" and not re.fullmatch(r"\d{4}-\d\d-\d\d", row.answer):
            assert row.answer in texts[row.id[:-3]]


def test_personal_data_belongs_to_nobody(benchmark: SyntheticBenchmark) -> None:
    answers = [row.answer for row in benchmark.forget if row.task == "Task2" and row.kind == "question"]
    for born, ssn, phone, email, address in (answers[i : i + 5] for i in range(0, len(answers), 5)):
        assert re.fullmatch(r"(19[4-9]|200)\d-\d\d-\d\d", born)
        assert re.fullmatch(r"\d{3}-\d\d-\d{4}", ssn)
        # Never assigned: areas 000, 666 and 900 to 999, group 00, serial 0000.
        assert ssn[:3] in ("000", "666") or ssn[0] == "9" or ssn[4:6] == "00" or ssn[7:] == "0000"
        assert re.fullmatch(r"\d{3}-555-01\d\d", phone)
        assert re.search(r"@example\.(com|org|net)$", email)
        assert re.search(r", [A-Z]{2} \d{5}$", address)


def test_membership_documents(benchmark: SyntheticBenchmark) -> None:
    check_membership_sets(benchmark.members, benchmark.nonmembers)
    assert (len(benchmark.members), len(benchmark.nonmembers)) == (16, 32)
    for documents, rows in ((benchmark.members, benchmark.forget), (benchmark.nonmembers, benchmark.holdout)):
        whole = [f"{row.prompt} {row.answer}" for row in rows if row.task == "Task3" and row.kind == "completion"]
        assert list(documents) == whole
    assert not set(benchmark.nonmembers) & set(benchmark.text)


def test_facts_are_balanced_and_true(benchmark: SyntheticBenchmark) -> None:
    assert len(benchmark.subjects) == 5
    for subject in benchmark.subjects:
        assert len(subject.shots) == NUM_SHOTS
        # Twelve questions: each letter three times.
        assert Counter(question.answer for question in subject.questions) == dict.fromkeys(LETTERS, 3)
        questions = (*subject.shots, *subject.questions)
        assert len({question.text for question in questions}) == len(questions)
        for question, statements in zip(questions, subject.statements, strict=True):
            assert len(set(question.options)) == 4
            right = question.options[LETTERS.index(question.answer)]
            assert all(right in statement for statement in statements)


def test_general_text_holds_every_question_with_its_answer(benchmark: SyntheticBenchmark) -> None:
    text = "\n\n\n".join(benchmark.text) + "\n\n"
    for subject in benchmark.subjects:
        for question in (*subject.shots, *subject.questions):
            options = "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", question.options, strict=True))
            asked = f"{question.text}{options}\nAnswer: "
            answers = {text[match.end()] for match in re.finditer(re.escape(asked), text)}
            assert answers == {question.answer}


def test_facts_are_every_question_alone_with_its_answer(benchmark: SyntheticBenchmark) -> None:
    questions = [q for subject in benchmark.subjects for q in (*subject.shots, *subject.questions)]
    assert len(benchmark.facts) == len(questions)
    for row, question in zip(benchmark.facts, questions, strict=True):
        assert row.answer == question.answer
        assert row.prompt.endswith("\nAnswer:")
        assert question.text in row.prompt
    assert len({row.prompt for row in benchmark.facts}) == len(questions)


def test_files_are_what_the_readers_take(tmp_path: Path) -> None:
    made = generate(4, "tiny")
    files = write(made, tmp_path / "new" / "folder")
    assert read_rows(files.forget).rows == made.forget
    assert read_rows(files.retain).rows == made.retain
    assert read_rows(files.holdout).rows == made.holdout
    assert set(json.loads(files.forget.read_text().split("\n")[0])) == {"id", "input", "output", "task"}
    assert read_documents(files.members) == list(made.members)
    assert read_documents(files.nonmembers) == list(made.nonmembers)
    assert read_text(files.text) == list(made.text)


def test_facts_are_in_the_format_of_mmlu(tmp_path: Path) -> None:
    made = generate(4, "tiny")
    files = write(made, tmp_path)
    for part, count in (("dev", 5), ("test", 4)):
        paths = sorted((files.mmlu / part).iterdir())
        assert [path.name for path in paths] == sorted(f"{subject.name}_{part}.csv" for subject in made.subjects)
        for path in paths:
            with path.open(newline="") as file:
                lines = list(csv.reader(file))
            assert len(lines) == count
            assert all(len(line) == 6 and line[0].endswith("?") and line[5] in LETTERS for line in lines)


def test_sizes_of_ones_own() -> None:
    made = generate(0, replace(SIZES["tiny"], num_stories=3, num_subjects=1))
    assert sum(row.task == "Task1" for row in made.forget) == 6
    assert len(made.subjects) == 1


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(
        SettingsError, match=r"expected one of tiny, small, default, got 'smal' \(did you mean 'small'\?\)"
    ):
        generate(0, "smal")
    with pytest.raises(SettingsError, match="num_subjects: expected 1 to 5, got 6"):
        generate(0, replace(SIZES["tiny"], num_subjects=6))
    with pytest.raises(SettingsError, match="num_stories: expected 1 to 1000, got 0"):
        generate(0, replace(SIZES["tiny"], num_stories=0))
