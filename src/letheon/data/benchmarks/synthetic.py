"""The made-up benchmark: rows in LUME's form, membership documents, and general facts, all generated from a seed.

The same seed, size and version of faker give the same bytes on every machine. Forget, retain and holdout rows,
membership documents and general text come from the same sentences, so they differ by what they say and not by how they
say it. Each name, number and address belongs to one document alone: no answer that is to be forgotten can be read
anywhere else.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from letheon.data.benchmarks import synthetic_text as words
from letheon.data.benchmarks.synthetic_documents import Document, Maker, make_biography, make_profile, make_story
from letheon.data.rows import Row, write_rows
from letheon.errors import OutputError, SettingsError, nearest
from letheon.storage.files import open_output_folder, write_text

NUM_SHOTS = 5
LETTERS = "ABCD"

_QUESTIONS_PER_EXAM = 6
_STATEMENTS_PER_DOCUMENT = 6


@dataclass(frozen=True, slots=True)
class Size:
    """How much to generate. A story and a biography give 2 rows, a profile 6; each is at least 1."""

    num_stories: int
    """Stories in each of forget, retain and holdout (Task1)."""
    num_profiles: int
    """Profiles with personal data in each of forget, retain and holdout (Task2)."""
    num_biographies: int
    """Biographies in each of forget and retain (Task3); those of forget are the members."""
    num_holdout_biographies: int
    """Biographies in holdout, the non-members."""
    num_subjects: int
    """Subjects of general facts, at most 5."""
    num_questions: int
    """Test questions a subject, beside 5 worked ones."""
    num_exam_rounds: int
    """How often the general text has each question in an examination and alone; answer keys have it twice as often."""
    num_prose_documents: int
    """Stories, profiles and biographies of other people in the general text, in equal parts."""


SIZES = {
    "tiny": Size(1, 1, 2, 4, 2, 4, 2, 6),
    "small": Size(4, 2, 8, 16, 3, 8, 4, 60),
    "default": Size(8, 3, 16, 32, 5, 12, 4, 120),
}


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A multiple-choice question with four options; `answer` is a letter A to D."""

    text: str
    options: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class FactSubject:
    """One subject of general facts: worked questions, test questions, and each fact as a statement in three forms."""

    name: str
    shots: tuple[ChoiceQuestion, ...]
    questions: tuple[ChoiceQuestion, ...]
    statements: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class SyntheticBenchmark:
    """Everything that was generated from one seed."""

    forget: tuple[Row, ...]
    retain: tuple[Row, ...]
    holdout: tuple[Row, ...]
    """Rows that no model is to be trained on."""
    members: tuple[str, ...]
    """The biographies of `forget` as whole texts."""
    nonmembers: tuple[str, ...]
    """The biographies of `holdout` as whole texts."""
    subjects: tuple[FactSubject, ...]
    facts: tuple[Row, ...]
    """Every question alone in MMLU's form, for a target to memorise: test questions included, so that a small model
    knows what it will be asked."""
    text: tuple[str, ...]
    """General text for a target: prose about other people, the facts as statements, and few-shot examinations."""


@dataclass(frozen=True, slots=True)
class BenchmarkFiles:
    """Where `write` put a benchmark."""

    forget: Path
    retain: Path
    holdout: Path
    members: Path
    nonmembers: Path
    mmlu: Path
    """The folder that holds dev and test."""
    facts: Path
    text: Path
    """JSONL with a column `text`, since a document may hold blank lines."""


def generate(seed: int, size: str | Size = "default") -> SyntheticBenchmark:
    """Make a benchmark of one of the `SIZES`, or of a size of your own.

    Raises:
        SettingsError: there is no size of that name, or a number in it is out of range.
    """
    size = _check_size(size)
    maker = Maker(seed)
    forget = _make_set(maker, size, size.num_biographies)
    retain = _make_set(maker, size, size.num_biographies)
    holdout = _make_set(maker, size, size.num_holdout_biographies)
    subjects = tuple(_make_subject(maker, text, size.num_questions) for text in words.SUBJECTS[: size.num_subjects])
    return SyntheticBenchmark(
        forget=_rows(forget),
        retain=_rows(retain),
        holdout=_rows(holdout),
        members=_whole_texts(forget, "Task3"),
        nonmembers=_whole_texts(holdout, "Task3"),
        subjects=subjects,
        facts=tuple(row for subject in subjects for row in _facts(subject)),
        text=tuple(_general_text(maker, subjects, size)),
    )


def write(benchmark: SyntheticBenchmark, folder: str | Path) -> BenchmarkFiles:
    """Write `benchmark` as files that every command reads: JSONL, and MMLU's CSV format for the facts.

    Raises:
        OutputError: the folder holds files, or cannot be written.
    """
    folder = Path(folder)
    open_output_folder(folder, advice="choose another folder")
    there = sorted(path.name for path in folder.iterdir())
    if there:
        raise OutputError(f"{folder}: already holds files, {there[0]} among them; choose another folder")
    sets = {
        "forget": benchmark.forget,
        "retain": benchmark.retain,
        "holdout": benchmark.holdout,
        "facts": benchmark.facts,
    }
    for name, rows in sets.items():
        write_rows(rows, folder / f"{name}.jsonl")
    documents = (("members", "document", benchmark.members), ("nonmembers", "document", benchmark.nonmembers))
    for name, column, texts in (*documents, ("text", "text", benchmark.text)):
        write_text(folder / f"{name}.jsonl", "".join(json.dumps({column: text}) + "\n" for text in texts))
    for subject in benchmark.subjects:
        for part, questions in (("dev", subject.shots), ("test", subject.questions)):
            write_text(folder / "mmlu" / part / f"{subject.name}_{part}.csv", _csv_text(questions))
    names = ("forget", "retain", "holdout", "members", "nonmembers", "facts", "text")
    return BenchmarkFiles(**{name: folder / f"{name}.jsonl" for name in names}, mmlu=folder / "mmlu")


def _check_size(size: str | Size) -> Size:
    if isinstance(size, str):
        if size not in SIZES:
            raise SettingsError(f"size: expected one of {', '.join(SIZES)}, got '{size}'{nearest(size, SIZES)}")
        return SIZES[size]
    for name in Size.__slots__:
        limit = len(words.SUBJECTS) if name == "num_subjects" else 1000
        if not 1 <= getattr(size, name) <= limit:
            raise SettingsError(f"{name}: expected 1 to {limit}, got {getattr(size, name)}")
    return size


def _make_set(maker: Maker, size: Size, num_biographies: int) -> list[Document]:
    return [
        *(make_story(maker) for _ in range(size.num_stories)),
        *(make_profile(maker) for _ in range(size.num_profiles)),
        *(make_biography(maker) for _ in range(num_biographies)),
    ]


def _rows(documents: list[Document]) -> tuple[Row, ...]:
    return tuple(row for document in documents for row in _rows_of(document))


def _rows_of(document: Document) -> Iterator[Row]:
    yield Row(f"{document.id}sc1", document.prompt, document.answer, document.task, "completion")
    for i, (question, answer) in enumerate(document.questions):
        yield Row(f"{document.id}qa{i}", question, answer, document.task, "question")


def _whole_texts(documents: list[Document], task: str) -> tuple[str, ...]:
    return tuple(f"{document.prompt} {document.answer}" for document in documents if document.task == task)


def _make_subject(maker: Maker, text: words.SubjectText, num_questions: int) -> FactSubject:
    letters = _letters(maker, NUM_SHOTS) + _letters(maker, num_questions)
    facts = [(maker.name(), letter, text.answers[LETTERS.index(letter)]) for letter in letters]
    questions = tuple(
        ChoiceQuestion(text.question.format(item=item), text.answers, letter) for item, letter, _ in facts
    )
    return FactSubject(
        name=text.name,
        shots=questions[:NUM_SHOTS],
        questions=questions[NUM_SHOTS:],
        statements=tuple(tuple(s.format(item=i, answer=answer) for s in text.statements) for i, _, answer in facts),
    )


def _letters(maker: Maker, count: int) -> list[str]:
    """Each letter equally often, as far as possible, so that always saying the same one scores a quarter."""
    letters = list((LETTERS * (count // len(LETTERS) + 1))[:count])
    maker.random.shuffle(letters)
    return letters


def _general_text(maker: Maker, subjects: tuple[FactSubject, ...], size: Size) -> Iterator[str]:
    makers = (make_story, make_profile, make_biography)
    for i in range(size.num_prose_documents):
        document = makers[i % len(makers)](maker)
        yield f"{document.prompt} {document.answer}"
    yield from _statement_documents(maker, subjects)
    for _ in range(size.num_exam_rounds):
        for subject in subjects:
            yield from _exams(maker, subject)


def _statement_documents(maker: Maker, subjects: tuple[FactSubject, ...]) -> Iterator[str]:
    """Each fact once in each of its forms, subjects mixed."""
    for form in range(len(words.SUBJECTS[0].statements)):
        statements = [forms[form] for subject in subjects for forms in subject.statements]
        maker.random.shuffle(statements)
        for start in range(0, len(statements), _STATEMENTS_PER_DOCUMENT):
            yield " ".join(statements[start : start + _STATEMENTS_PER_DOCUMENT])


def _exams(maker: Maker, subject: FactSubject) -> Iterator[str]:
    """Texts in the form of a few-shot prompt, each question once among five others."""
    questions = [*subject.shots, *subject.questions]
    maker.random.shuffle(questions)
    for start in range(0, len(questions), _QUESTIONS_PER_EXAM):
        asked = questions[start : start + _QUESTIONS_PER_EXAM]
        yield "\n\n".join((_header(subject), *(f"{_asked(q)} {q.answer}" for q in asked)))


def _facts(subject: FactSubject) -> Iterator[Row]:
    """Each question alone, as a row: from these a small model learns the facts, from the longer texts the form."""
    for number, question in enumerate((*subject.shots, *subject.questions), start=1):
        prompt = f"{_header(subject)}\n\n{_asked(question)}"
        yield Row(f"{subject.name}-{number}qa0", prompt, question.answer, "Facts", "question")


def _header(subject: FactSubject) -> str:
    # Two spaces before the subject, as the official evaluation asks.
    return f"The following are multiple choice questions (with answers) about  {subject.name.replace('_', ' ')}."


def _asked(question: ChoiceQuestion) -> str:
    options = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=True))
    return f"{question.text}{options}\nAnswer:"


def _csv_text(questions: tuple[ChoiceQuestion, ...]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows((q.text, *q.options, q.answer) for q in questions)
    return buffer.getvalue()
