"""What MUSE's suite asks and measures: continuations, answers after worked questions, likelihoods of whole texts."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from letheon.data.benchmarks.muse import corpus_of, read_muse
from letheon.data.rows import Row, read_rows
from letheon.errors import SettingsError
from letheon.evaluation.generation import generate_from
from letheon.evaluation.metrics.likelihood import AnswerLikelihood, AskedAnswers, likelihoods
from letheon.evaluation.metrics.memorisation import (
    exact_memorisation,
    extraction_strength,
    min_k,
    sound_extraction_strength,
    zlib_ratio,
)
from letheon.evaluation.metrics.rouge import plain_rouge
from letheon.evaluation.never import never_model
from letheon.evaluation.predicting import predict
from letheon.evaluation.suite import Asked, Measured, Note, Target
from letheon.evaluation.suites.muse.listing import (
    FORGET_QUESTIONS,
    ORIGINAL,
    PARITIES,
    RETAIN_QUESTIONS,
    SETS,
    VERBMEM,
)
from letheon.evaluation.suites.muse.never import Never, never_of, read_never
from letheon.evaluation.templates import MAX_LENGTH, LabelledSequence, QuestionTemplate, question_template
from letheon.model.loading import context_length
from letheon.scores.predictions import Prediction
from letheon.scores.score import SOUND
from letheon.settings import EvaluateSettings
from letheon.settings.suites import data_folder

NEW_TOKENS: Mapping[str, int] = {VERBMEM: 128, FORGET_QUESTIONS: 32, RETAIN_QUESTIONS: 32}
STOPS = ("\n\n", "\nQuestion", "Question:")
"""Texts at which an answer to a question ends."""
MAX_TOKENS = 2048
"""Tokens at which a text of the membership attack, or a continuation to compare with, is cut."""


def ask(settings: EvaluateSettings, note: Note | None) -> Asked:
    """Read and check all that the suite asks; `note` hears what was read.

    Raises:
        DataError: a file is missing or not usable.
        EvaluationError: --never-results is no file with an AUC of Min-K, or of another corpus or parity.
        SettingsError: --never and --never-results are both given.
    """
    if settings.never is not None and settings.never_results is not None:
        raise SettingsError("never: expected a model or its results, got both; leave out --never or --never-results")
    corpus, parity = corpus_of(settings.split or "news"), settings.parity or PARITIES[0]
    muse = read_muse(data_folder(settings.suite, settings.data), corpus)
    rows = {VERBMEM: muse.verbmem, FORGET_QUESTIONS: muse.forget, RETAIN_QUESTIONS: muse.retain}
    if note is not None:
        note(f"MUSE {corpus}: " + ", ".join(f"{len(one)} {name}" for name, one in rows.items()))
    known = settings.never_results
    never = None if known is None else read_never(known, corpus=corpus, parity=parity)
    shots = {f"{FORGET_QUESTIONS}_shots": muse.forget_shots, f"{RETAIN_QUESTIONS}_shots": muse.retain_shots}
    texts = {"members": muse.members, "holdout": muse.holdout}
    options: dict[str, Any] = {"corpus": corpus, "parity": parity, "never_results": never, "never": settings.never}
    options["sound"] = settings.sound
    loading = {"dtype": settings.dtype, "trust_remote_code": settings.trust_remote_code}
    sides = {side: Path(getattr(settings, side)) for side in ("forget", "retain")}
    trained = {side: read_rows(path) for side, path in sides.items() if path.is_file()}
    return Asked(rows, {**shots, **texts}, {**options, **loading}, trained)


def measure(target: Target, asked: Asked) -> Measured:
    """Generate for every row, and read every text once."""
    template = question_template(target.tokenizer, "question-answer")
    predictions = [
        one for name in SETS for one in _predictions(target, asked, template, name, longest=_longest(asked, name))
    ]
    others: dict[str, Any] = {
        "texts": _texts(target, asked, template),
        "parity": asked.options.get("parity", PARITIES[0]),
        "corpus": asked.options.get("corpus", ""),
        "dtype": str(target.model.dtype).removeprefix("torch."),
        "num_cut": sum(len(_cut(target, asked, name)) for name in SETS),
    }
    if others["num_cut"] and asked.options.get("sound", True):
        others[SOUND] = _whole_questions(target, asked, template, predictions)
    if not _is_original(asked):
        others["memorised"] = _memorised(target, asked, template)
    never = _never(target, asked, template)
    if never is not None:
        others["never"] = asdict(never)
    return Measured(tuple(predictions), others=others)


def cut_at_stops(text: str) -> str:
    """Return an answer up to the first of each text that ends it, stripped."""
    for stop in STOPS:
        text = text.split(stop, maxsplit=1)[0]
    return text.strip()


def few_shot(shots: Sequence[Row], question: str) -> str:
    """Return a question after worked ones, as open-unlearning writes them."""
    worked = "".join(f"Question: {shot.prompt}\nAnswer: {shot.answer}\n\n" for shot in shots)
    return f"{worked}Question: {question}\nAnswer: "


def _predictions(
    target: Target,
    asked: Asked,
    template: QuestionTemplate,
    name: str,
    *,
    longest: int | None,
    chosen: Collection[int] | None = None,
) -> list[Prediction]:
    """Return the answers to a set, or to the rows of it that are `chosen`, by prompts cut to `longest` tokens."""
    rows = asked.rows[name] if chosen is None else asked.rows[name].select(chosen)
    texts = [_asked_text(asked, name, row) for row in rows]
    prompts: list[list[int]] = [target.tokenizer(text).input_ids[:longest] for text in texts]
    space = " " if name == VERBMEM else ""
    wholes: list[list[int]] = [
        target.tokenizer(f"{text}{space}{row.answer}").input_ids[:longest]
        for text, row in zip(texts, rows, strict=True)
    ]
    found = generate_from(
        target.model,
        target.tokenizer,
        prompts,
        guesses=[whole[len(prompt) :] for whole, prompt in zip(wholes, prompts, strict=True)],
        more_ends={template.end},
        max_new_tokens=NEW_TOKENS[name],
        batch_size=target.batch_size,
        exact=target.exact,
        names=[f"{name} row {row.id}" for row in rows],
        progress=target.stage(name),
    )
    predictions = []
    for row, prompt, whole, generation in zip(rows, prompts, wholes, found, strict=True):
        if _is_original(asked):
            wanted = _original_answer(target, row, template, name)
        else:
            kept = whole[: len(prompt) + MAX_TOKENS]
            wanted = template.decoded(kept).replace(template.decoded(prompt), "").strip()
        text = generation.text.strip() if name == VERBMEM else cut_at_stops(generation.text)
        predictions.append(predict(replace(row, answer=wanted), name, text))
    return predictions


def _longest(asked: Asked, name: str) -> int | None:
    """Return after how many tokens worked questions and question are cut: open-unlearning cuts them like any others."""
    return None if name == VERBMEM or _is_original(asked) else MAX_LENGTH


def _asked_text(asked: Asked, name: str, row: Row) -> str:
    return row.prompt if name == VERBMEM else few_shot(asked.others.get(f"{name}_shots", ()), row.prompt)


def _cut(target: Target, asked: Asked, name: str) -> dict[int, int]:
    """Return which questions after worked ones are cut, each with its number of tokens."""
    longest = _longest(asked, name)
    if longest is None:
        return {}
    lengths = [len(target.tokenizer(_asked_text(asked, name, row)).input_ids) for row in asked.rows[name]]
    return {index: length for index, length in enumerate(lengths) if length > longest}


def _whole_questions(
    target: Target, asked: Asked, template: QuestionTemplate, predictions: Sequence[Prediction]
) -> dict[str, list[float]]:
    """Return the ROUGE-L F1 of each answer in the sets with cut questions, these asked whole.

    A set of which one does not fit into the model's context is left out.
    """
    found: dict[str, list[float]] = {}
    room = context_length(target.model.config) or math.inf
    for name in SETS:
        cut = _cut(target, asked, name)
        if cut and max(cut.values()) < room:
            whole = _predictions(target, asked, template, name, longest=None, chosen=cut)
            answers = [one for one in predictions if one.split == name]
            for index, answer in zip(cut, whole, strict=True):
                answers[index] = answer
            found[name] = [plain_rouge(one.generation, one.answer).rouge_l_f1 for one in answers]
    return found


def _is_original(asked: Asked) -> bool:
    return bool(asked.options.get("parity") == ORIGINAL)


def _original_answer(target: Target, row: Row, template: QuestionTemplate, name: str) -> str:
    """Return what MUSE's own code compares with: the answer, or as many tokens of a text as are generated."""
    if name != VERBMEM:
        return row.answer
    ids: list[int] = target.tokenizer(row.answer).input_ids
    return template.decoded(ids[: NEW_TOKENS[VERBMEM]])


def _texts(target: Target, asked: Asked, template: QuestionTemplate) -> dict[str, dict[str, list[float]]]:
    """Return loss, zlib, Min-K and Min-K++ of the texts of each side."""
    found: dict[str, dict[str, list[float]]] = {}
    num_special = len(target.tokenizer("").input_ids)
    for side in ("members", "holdout"):
        texts = asked.others[side]
        cut = [tuple(target.tokenizer(text).input_ids[: num_special + MAX_TOKENS]) for text in texts]
        found[side] = (
            _original_values(target, texts, cut, template)
            if _is_original(asked)
            else _values(target, [LabelledSequence(ids, max(1, num_special)) for ids in cut], template)
        )
    return found


def _values(
    target: Target, sequences: Sequence[LabelledSequence], template: QuestionTemplate
) -> dict[str, list[float]]:
    read = _read(target, sequences, template)
    return {
        "loss": [one.loss for one in read],
        "zlib": [zlib_ratio(one.loss, template.label_text(s)) for one, s in zip(read, sequences, strict=True)],
        "min_k": [min_k(one.log_probs) for one in read],
        "min_k_plus_plus": [min_k(one.normed) for one in read],
    }


def _original_values(
    target: Target, texts: Sequence[str], cut: Sequence[tuple[int, ...]], template: QuestionTemplate
) -> dict[str, list[float]]:
    """Return the values of MUSE's own code, in which every token counts but the first, and zlib has the whole text."""
    # The last label's log-probability is not kept; behind an end that is not looked at no token is the last.
    read = _read(target, [LabelledSequence((*ids, template.end), 1) for ids in cut], template)
    losses = [-fmean(one.log_probs) if one.log_probs else math.nan for one in read]
    return {
        "loss": losses,
        "zlib": [zlib_ratio(loss, text) for loss, text in zip(losses, texts, strict=True)],
        "min_k": [min_k(one.log_probs) for one in read],
    }


def _read(target: Target, sequences: Sequence[LabelledSequence], template: QuestionTemplate) -> list[AnswerLikelihood]:
    read = likelihoods(
        target.model,
        [AskedAnswers((sequence,), in_detail=1) for sequence in sequences],
        padding=template.padding,
        batch_size=target.batch_size,
        exact=target.exact,
        progress=target.stage("likelihood"),
    )
    return [one for (one,) in read]


def _memorised(target: Target, asked: Asked, template: QuestionTemplate) -> dict[str, list[float]]:
    """Return exact memorisation and extraction strength of the continuations of texts to forget."""
    sequences = []
    for row in asked.rows[VERBMEM]:
        start = len(target.tokenizer(row.prompt).input_ids)
        ids = target.tokenizer(f"{row.prompt} {row.answer}").input_ids[: start + MAX_TOKENS]
        sequences.append(LabelledSequence(tuple(ids), max(1, start)))
    hits = [one.hits for one in _read(target, sequences, template)]
    return {
        "exact_memorisation": [value for one in hits if (value := exact_memorisation(one)) is not None],
        "extraction_strength": [extraction_strength(one) for one in hits],
        "extraction_strength_from_0": [sound_extraction_strength(one) for one in hits],
    }


def _never(target: Target, asked: Asked, template: QuestionTemplate) -> Never | None:
    """Return what is known of a model that never knew the texts: from its results, or from the model itself."""
    known: Never | None = asked.options.get("never_results")
    source = asked.options.get("never")
    if known is not None or source is None:
        return known
    return never_of(str(source), _texts(never_model(target, asked, source), asked, template))
