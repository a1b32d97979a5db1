"""What RWKU (Jin et al., arXiv 2406.10890) asks besides its probes: general abilities, and texts to recognise."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from letheon.data.benchmarks.columns import text_in
from letheon.data.benchmarks.rwku import file_of, root_of
from letheon.data.benchmarks.wmdp import ChoiceQuestion, choice_question
from letheon.data.records import Record, check_text, open_records
from letheon.errors import DataError

GENERAL, REASONING, TRUTHFULNESS, FACTUALITY = "general", "reasoning", "truthfulness", "factuality"
FORGET_TEXTS, RETAIN_TEXTS = "mia_forget", "mia_retain"
FILES: Mapping[str, str] = {
    GENERAL: "retain_mmlu",
    REASONING: "retain_bbh",
    TRUTHFULNESS: "truthful",
    FACTUALITY: "triviaqa",
    FORGET_TEXTS: "forget_mia",
    RETAIN_TEXTS: "retain_mia",
}
"""The published file of each set: MMLU, BBH, TruthfulQA, TriviaQA, and texts about the people and about others."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class WorkedChoice:
    """A question with four choices after worked ones."""

    subject: str
    question: ChoiceQuestion
    examples: tuple[ChoiceQuestion, ...]


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    """A question with the answers that are right."""

    text: str
    answers: tuple[str, ...]
    worked: str = ""
    """Worked questions that come before it; empty where every question has the same."""
    answer_is_text: bool = False
    """Whether the answer is one text in the file and not a list."""


@dataclass(frozen=True, slots=True)
class TruthQuestion:
    """A question with true and false statements."""

    text: str
    single: tuple[tuple[str, bool], ...]
    """Statements of which the first true one is to be the likeliest of all: MC1."""
    several: tuple[tuple[str, bool], ...]
    """Statements of which the true ones are to have all probability: MC2."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What is there of these sets; what is not is empty."""

    general: tuple[WorkedChoice, ...] = ()
    reasoning: tuple[OpenQuestion, ...] = ()
    truthfulness: tuple[TruthQuestion, ...] = ()
    factuality: tuple[OpenQuestion, ...] = ()
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By set, texts about the people to forget and about others, all of which models have met in training."""

    def sizes(self) -> dict[str, int]:
        """Return the number of questions, or texts, of each set that is there."""
        found = {name: getattr(self, name) for name in (GENERAL, REASONING, TRUTHFULNESS, FACTUALITY)}
        return {name: len(one) for name, one in {**found, **self.texts}.items() if one}


def read_abilities(folder: str | Path, subject: str | None = None) -> Abilities:
    """Read the sets that are there, from FOLDER/All or FOLDER itself, in the published layout.

    These are retain_mmlu (columns task, question, choices, answer, examples), retain_bbh (question, answer, cot),
    truthful (question, mc1_targets, mc2_targets), triviaqa (question, answers), forget_mia and retain_mia (text), each
    NAME.json, NAME.jsonl or NAME.parquet. With a `subject` there are only the rows that name this person, or nobody.

    Raises:
        DataError: a row is not usable.
    """
    root = root_of(folder)

    def read(name: str, make: Callable[[Record, str], _T]) -> tuple[_T, ...]:
        path = file_of(root, FILES[name])
        return () if path is None else _read(path, make, subject)

    texts = {name: read(name, lambda record, where: text_in(record, "text", where)) for name in _TEXTS}
    return Abilities(
        read(GENERAL, _worked_choice),
        read(REASONING, _reasoning),
        read(TRUTHFULNESS, _truth),
        read(FACTUALITY, _fact),
        {name: found for name, found in texts.items() if found},
    )


_TEXTS = (FORGET_TEXTS, RETAIN_TEXTS)


def _read(path: Path, make: Callable[[Record, str], _T], subject: str | None) -> tuple[_T, ...]:
    records = open_records(path)
    entries = list(records.entries)
    if not entries:
        raise DataError(f"{path}: expected rows, found none: the file is empty")
    asked = [(number, one) for number, one in entries if subject is None or one.get("subject") in (None, subject)]
    return tuple(make(record, records.where(number)) for number, record in asked)


def _worked_choice(record: Record, where: str) -> WorkedChoice:
    examples = record.get("examples")
    if not isinstance(examples, list) or not all(isinstance(one, Mapping) for one in examples):
        raise DataError(f"{where}: expected a list of worked questions in 'examples', got {str(examples)[:60]!r}")
    worked = tuple(choice_question(dict(one), f"{where}, examples") for one in examples)
    return WorkedChoice(text_in(record, "task", where), choice_question(record, where), worked)


def _reasoning(record: Record, where: str) -> OpenQuestion:
    answer = record.get("answer")
    return OpenQuestion(
        text_in(record, "question", where),
        (check_text(answer, "answer", where),) if isinstance(answer, str) else _texts_of(answer, "answer", where),
        text_in(record, "cot", where),
        isinstance(answer, str),
    )


def _fact(record: Record, where: str) -> OpenQuestion:
    question = text_in(record, "question", where)
    return OpenQuestion(question, _texts_of(record.get("answers"), "answers", where))


def _truth(record: Record, where: str) -> TruthQuestion:
    single, several = (_statements(record.get(name), name, where) for name in ("mc1_targets", "mc2_targets"))
    return TruthQuestion(text_in(record, "question", where), single, several)


def _texts_of(found: object, column: str, where: str) -> tuple[str, ...]:
    if not isinstance(found, list) or not found:
        raise DataError(f"{where}: expected a list of texts in '{column}', got {str(found)[:60]!r}")
    return tuple(check_text(text, column, where) for text in found)


def _statements(found: Any, column: str, where: str) -> tuple[tuple[str, bool], ...]:
    choices, labels = (found.get(name) if isinstance(found, Mapping) else None for name in ("choices", "labels"))
    texts = _texts_of(choices, f"{column}.choices", where)
    if not isinstance(labels, list) or len(labels) != len(texts) or {*labels} != {0, 1}:
        raise DataError(
            f"{where}: expected a 0 or 1 for each of the {len(texts)} choices in '{column}.labels', some of either, "
            f"got {str(labels)[:60]!r}"
        )
    return tuple((text, bool(label)) for text, label in zip(texts, labels, strict=True))
