"""MMLU (Hendrycks et al. 2021): multiple choice by next-token probability, five-shot as officially asked, or fewer.

The few-shot text of a subject is the same for all its questions, so its keys and values are computed once and questions
of like length are read on top of them in one batch. Each prompt is tokenised whole and only the tokens that all prompts
share count as the shared part, so the model sees exactly the tokens of the whole prompt.
"""

import copy
import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from letheon.engine.patches.rotation import changes_rotation
from letheon.errors import EvaluationError
from letheon.evaluation.batches import (
    KEY_VALUE_LAYERS,
    StepProgress,
    length_batches,
    padded,
    position_limit,
    reading,
    token_ids,
)
from letheon.evaluation.metrics.found import MmluScores
from letheon.evaluation.readback import as_read_back
from letheon.model.loading import context_length
from letheon.processes import shared

LETTERS = "ABCD"
NUM_SHOTS = 5
MAX_PROMPT_TOKENS = 2048
MAX_BATCH_TOKENS = 16384
"""Tokens, the shared ones counted for each row, whose keys and values one batch may hold."""
MAX_READ_TOKENS = 2048
"""Tokens, padding counted, that one batch may read: more would not be faster, and less alike in length."""


@dataclass(frozen=True, slots=True)
class Question:
    """One multiple-choice question; `answer` is a letter A to D."""

    text: str
    options: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Subject:
    """The questions of one subject, and up to five worked ones to show before each."""

    name: str
    shots: tuple[Question, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as tokens after `num_shots` worked questions; prompts of one subject and count begin alike."""

    tokens: tuple[int, ...]
    num_shots: int


def read_mmlu(folder: Path, *, limit_per_subject: int | None = None, reads_back: bool = True) -> list[Subject]:
    """Read FOLDER/test/SUBJECT_test.csv and FOLDER/dev/SUBJECT_dev.csv, subjects sorted by name.

    The files have no header: question, A, B, C, D, answer letter. With `reads_back`, fields that pandas reads as not
    available ("None") become "nan", as in the official prompts. `limit_per_subject` keeps the first so many questions
    of each subject.

    Raises:
        EvaluationError: the folder has no such files, a subject has no dev file, or a line is not a question.
    """
    paths = sorted((folder / "test").glob("*_test.csv"))
    if not paths:
        raise EvaluationError(
            f"{folder}: expected MMLU as test/SUBJECT_test.csv and dev/SUBJECT_dev.csv, but {_instead(folder)}"
        )
    subjects = []
    for path in paths:
        name = path.name.removesuffix("_test.csv")
        shots = _read_questions(folder / "dev" / f"{name}_dev.csv", reads_back=reads_back)[:NUM_SHOTS]
        questions = _read_questions(path, reads_back=reads_back)[:limit_per_subject]
        subjects.append(Subject(name, tuple(shots), tuple(questions)))
    return subjects


def _instead(folder: Path) -> str:
    """Say what the folder holds instead of MMLU, and name a nearby folder that has it."""
    if not folder.is_dir():
        return f"{'that is a file' if folder.exists() else 'there is no such folder'}; check the path"
    near = [folder.parent, *sorted(path for path in folder.iterdir() if path.is_dir())]
    meant = next((path for path in near if any((path / "test").glob("*_test.csv"))), None)
    advice = "give the folder that holds dev and test" if meant is None else f"give {meant}, which holds them"
    return f"test/ holds no such file; {advice}"


def sample_mmlu(subjects: Sequence[Subject], num_questions: int, *, num_shots: int = NUM_SHOTS) -> list[Subject]:
    """Return `num_questions` questions, every k-th of all in their order, so that each subject has its share of them.

    All are returned where there are no more. Subjects left without a question are left out. `num_shots` is the most
    worked questions to show before each; 0 asks zero-shot.

    Raises:
        EvaluationError: a number is out of range.
    """
    if num_questions < 1 or num_shots < 0:
        raise EvaluationError(
            f"MMLU: expected at least one question and no negative number of worked ones, got {num_questions} "
            f"questions after {num_shots}"
        )
    total = sum(len(subject.questions) for subject in subjects)
    num_drawn, start, sampled = min(num_questions, total), 0, []
    drawn = {number * total // num_drawn for number in range(num_drawn)}
    for subject in subjects:
        kept = tuple(question for number, question in enumerate(subject.questions, start) if number in drawn)
        start += len(subject.questions)
        if kept:
            sampled.append(replace(subject, shots=subject.shots[:num_shots], questions=kept))
    return sampled


def prompt_text(subject: Subject, question: Question, *, num_shots: int = NUM_SHOTS) -> str:
    r"""Return the header, the first `num_shots` worked questions and the question, ending in "\nAnswer:"."""
    # The official script puts a space before each word of the subject, and one before them all: two in a row.
    name = subject.name.replace("_", " ")
    header = f"The following are multiple choice questions (with answers) about  {name}.\n\n"
    shots = "".join(f"{_question_text(shot)} {shot.answer}\n\n" for shot in subject.shots[:num_shots])
    return header + shots + _question_text(question)


def score_mmlu(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    subjects: Sequence[Subject],
    *,
    limit_per_subject: int | None = None,
    batch_size: int = 32,
    exact: bool = False,
    progress: StepProgress | None = None,
) -> MmluScores:
    """Return the accuracy by subject and over all questions; `limit_per_subject` is what `subjects` was read with.

    The choice is the letter whose token (" A" to " D") the model finds likeliest next; of equal ones the first. Worked
    questions are dropped from the end until a prompt fits min(2048, the model's context) tokens, a BOS not counted; a
    question longer than that alone is still asked, beyond the positions that the model was trained on. `exact` reads
    one whole prompt at a time.

    Raises:
        EvaluationError: the letters are not four different tokens, a question does not fit the model's position table,
            or the model's probabilities are not finite.
    """
    letters = letter_tokens(tokenizer)
    max_tokens = min(MAX_PROMPT_TOKENS, context_length(model.config) or MAX_PROMPT_TOKENS)
    limit = position_limit(model)

    def right_of(subject: Subject) -> int:
        """Return how many of a subject's questions are answered rightly."""
        prompts = subject_prompts(tokenizer, subject, max_tokens=max_tokens, limit=limit)
        _check_lengths(subject, prompts, limit)
        found = letter_probabilities(model, prompts, letters, batch_size=batch_size, exact=exact)
        if not torch.isfinite(found).all():
            raise EvaluationError(
                f"MMLU, {subject.name}: the model's probabilities are not finite; the checkpoint is broken, use an "
                f"earlier one"
            )
        choices = [LETTERS[i] for i in found.argmax(dim=1).tolist()]
        return sum(a == q.answer for a, q in zip(choices, subject.questions, strict=True))

    counts = [len(subject.questions) for subject in subjects]
    found = shared(subjects, right_of, counts=counts, progress=progress)
    num_right = {subject.name: num for subject, num in zip(subjects, found, strict=True)}
    total = sum(counts)
    return MmluScores(
        accuracy=sum(num_right.values()) / total,
        subjects={subject.name: num_right[subject.name] / len(subject.questions) for subject in subjects},
        num_questions=total,
        num_shots=max(len(subject.shots) for subject in subjects),
        limit_per_subject=limit_per_subject,
    )


def letter_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the last token of " A", " B", " C" and " D" without special tokens.

    Raises:
        EvaluationError: they are not four different tokens.
    """
    tokens = [
        row[-1] for row in token_ids(tokenizer, [f" {letter}" for letter in LETTERS], special_tokens=False) if row
    ]
    if len(set(tokens)) != len(LETTERS):
        raise EvaluationError(
            f"MMLU needs four different tokens for ' A', ' B', ' C' and ' D', but this tokenizer gives {tokens}; "
            "leave MMLU out for this model"
        )
    return tokens


def subject_prompts(
    tokenizer: PreTrainedTokenizerBase, subject: Subject, *, max_tokens: int, limit: int | None = None
) -> list[Prompt]:
    """Return each question's prompt with as many worked questions as `max_tokens` tokens allow.

    As in the official evaluation the special tokens that the tokenizer adds (a BOS) are read, but not counted; only
    `limit`, the positions that the model has, counts them too. A question too long even alone is asked alone.
    """
    prompts = _tokenise(tokenizer, subject, range(len(subject.questions)), len(subject.shots))
    longest = max_tokens + _num_special_tokens(tokenizer)
    longest = longest if limit is None else min(longest, limit)
    for num_shots in reversed(range(len(subject.shots))):
        too_long = [i for i, prompt in enumerate(prompts) if len(prompt.tokens) > longest]
        for i, prompt in zip(too_long, _tokenise(tokenizer, subject, too_long, num_shots), strict=True):
            prompts[i] = prompt
    return prompts


def letter_probabilities(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    letters: Sequence[int],
    *,
    batch_size: int = 32,
    exact: bool = False,
) -> Tensor:
    """Return the probability (Q, 4), float32 on the CPU, of each letter's token after Q prompts of one subject.

    The softmax runs over the whole vocabulary in float32. `exact` gives the model one whole prompt at a time; otherwise
    prompts with the same number of worked questions share the keys and values of the tokens they have in common.
    """
    found = torch.zeros(len(prompts), len(letters))
    with reading(model) as plain_model:
        exact = exact or changes_rotation(plain_model.config, [len(prompt.tokens) for prompt in prompts])
        for group in _groups(prompts, exact=exact):
            rows = [prompts[i].tokens for i in group]
            cache = None if exact else _cache_of(plain_model, _common_start(rows))
            num_shared = 0 if cache is None else cache.get_seq_length()
            for batch in _group_batches(rows, num_shared=num_shared, batch_size=batch_size):
                logits = _last_logits(plain_model, [rows[k][num_shared:] for k in batch], cache)
                found[[group[k] for k in batch]] = logits.float().softmax(dim=-1)[:, list(letters)].cpu()
    return found


def _check_lengths(subject: Subject, prompts: Sequence[Prompt], limit: int | None) -> None:
    for number, prompt in enumerate(prompts, 1):
        if limit is not None and len(prompt.tokens) > limit:
            raise EvaluationError(
                f"MMLU, {subject.name}: question {number} has {len(prompt.tokens)} tokens without worked questions, "
                f"but the model's position table ends at {limit}; leave MMLU out for this model"
            )


def _groups(prompts: Sequence[Prompt], *, exact: bool) -> list[list[int]]:
    if exact:
        return [[i] for i in range(len(prompts))]
    counts = sorted({prompt.num_shots for prompt in prompts})
    return [[i for i, prompt in enumerate(prompts) if prompt.num_shots == count] for count in counts]


def _common_start(rows: Sequence[tuple[int, ...]]) -> list[int]:
    """The first tokens that all rows share, at least one token being left to each."""
    first, last = min(rows), max(rows)  # in dictionary order: what these two share, all rows between them share
    shortest = min(len(row) for row in rows) - 1
    length = next((i for i in range(shortest) if first[i] != last[i]), shortest)
    return list(first[:length])


def _group_batches(rows: Sequence[Sequence[int]], *, num_shared: int, batch_size: int) -> list[list[int]]:
    room = max(1, MAX_BATCH_TOKENS // max(len(row) for row in rows))
    lengths = [len(row) - num_shared for row in rows]
    return length_batches(lengths, max_rows=min(batch_size, room), max_tokens=MAX_READ_TOKENS)


def _cache_of(model: PreTrainedModel, start: Sequence[int]) -> DynamicCache | None:
    """Keys and values of the tokens `start`; None without tokens, or for a model that keeps another kind of state."""
    if not start:
        return None
    input_ids = torch.tensor([list(start)], device=model.device)
    cache = model(input_ids=input_ids, use_cache=True, logits_to_keep=1).past_key_values
    known = isinstance(cache, DynamicCache) and {type(layer) for layer in cache.layers} <= set(KEY_VALUE_LAYERS)
    return cache if known else None


def _repeated(cache: DynamicCache, num_rows: int) -> DynamicCache:
    """The same keys and values for `num_rows` rows, without a copy: a forward pass appends to them in a new place."""
    repeated: Any = copy.copy(cache)
    repeated.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in repeated.layers:
        layer.keys, layer.values = (states.expand(num_rows, -1, -1, -1) for states in (layer.keys, layer.values))
    return cast("DynamicCache", repeated)


def _last_logits(model: PreTrainedModel, rows: Sequence[Sequence[int]], cache: DynamicCache | None) -> Tensor:
    """Logits (B, V) after the last token of each of B rows that continue `cache`.

    Rows are padded on the right, where causal attention never looks, so neither mask nor positions are needed.
    """
    input_ids, mask = padded(rows, side="right", device=model.device)
    positions, which = torch.unique(mask.sum(dim=1) - 1, return_inverse=True)
    past = None if cache is None else _repeated(cache, len(rows))
    output = model(input_ids=input_ids, past_key_values=past, use_cache=past is not None, logits_to_keep=positions)
    logits: Tensor = output.logits[torch.arange(len(rows), device=model.device), which]
    return logits


def _tokenise(
    tokenizer: PreTrainedTokenizerBase, subject: Subject, which: Sequence[int], num_shots: int
) -> list[Prompt]:
    texts = [prompt_text(subject, subject.questions[i], num_shots=num_shots) for i in which]
    return [Prompt(tuple(row), num_shots) for row in token_ids(tokenizer, texts)]


def _num_special_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    text = ["Answer:"]
    return len(token_ids(tokenizer, text)[0]) - len(token_ids(tokenizer, text, special_tokens=False)[0])


def _question_text(question: Question) -> str:
    options = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=True))
    return f"{question.text}{options}\nAnswer:"


def _read_questions(path: Path, *, reads_back: bool) -> list[Question]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            lines = ((fields, f"{path}:{reader.line_num}") for fields in reader if fields)
            questions = [_question(fields, where, reads_back=reads_back) for fields, where in lines]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(
            f"{path}: expected a CSV file of MMLU questions, but it cannot be read ({error})"
        ) from error
    if not questions:
        raise EvaluationError(f"{path}: expected a CSV file of MMLU questions, but it is empty")
    return questions


def _question(fields: Sequence[str], where: str, *, reads_back: bool) -> Question:
    if len(fields) != 2 + len(LETTERS) or fields[-1] not in tuple(LETTERS):
        raise EvaluationError(
            f"{where}: expected six fields without a header (question, A, B, C, D, answer letter), got {len(fields)} "
            f"ending in {fields[-1]!r}; correct the line"
        )
    text, *options = map(as_read_back, fields[:-1]) if reads_back else fields[:-1]
    return Question(text, tuple(options), fields[-1])
