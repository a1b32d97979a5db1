"""What MUSE's suite asks and measures: continuations, answers after worked questions, likelihoods of whole texts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from letheon.data.benchmarks.muse import read_muse
from letheon.data.rows import Row
from letheon.errors import EvaluationError
from letheon.evaluation.generation import generate_from
from letheon.evaluation.metrics.likelihood import AskedAnswers, likelihoods
from letheon.evaluation.metrics.memorisation import min_k, zlib_ratio
from letheon.evaluation.predicting import predict
from letheon.evaluation.registry import read_results
from letheon.evaluation.suite import Asked, Measured, Note, Target
from letheon.evaluation.templates import LabelledSequence, QuestionTemplate, question_template
from letheon.scores.predictions import Prediction
from letheon.settings import EvaluateSettings
from letheon.settings.suites import data_folder

VERBMEM, FORGET_QUESTIONS, RETAIN_QUESTIONS = "verbatim_memory", "knowmem_forget", "knowmem_retain"
SETS = (VERBMEM, FORGET_QUESTIONS, RETAIN_QUESTIONS)
NEW_TOKENS: Mapping[str, int] = {VERBMEM: 128, FORGET_QUESTIONS: 32, RETAIN_QUESTIONS: 32}
STOPS = ("\n\n", "\nQuestion", "Question:")
"""Texts at which an answer to a question ends."""
MAX_TOKENS = 2048
"""Tokens at which a text of the membership attack, or a continuation to compare with, is cut."""


def ask(settings: EvaluateSettings, note: Note | None) -> Asked:
    """Read and check all that the suite asks; `note` hears what was read.

    Raises:
        DataError: a file is missing or not usable.
        EvaluationError: --never is given, or --never-results is no results.json with an AUC of Min-K.
    """
    if settings.never is not None:
        raise EvaluationError("never: MUSE takes results alone; score that model first and give --never-results FILE")
    corpus = settings.split or "news"
    muse = read_muse(data_folder(settings.suite, settings.data), corpus)
    rows = {VERBMEM: muse.verbmem, FORGET_QUESTIONS: muse.forget, RETAIN_QUESTIONS: muse.retain}
    if note is not None:
        note(f"MUSE {corpus}: " + ", ".join(f"{len(one)} {name}" for name, one in rows.items()))
    never_auc = None
    if settings.never_results is not None:
        never_auc = read_results(settings.never_results).scores.value("mia.min_k")
        if never_auc is None:
            raise EvaluationError(
                f"never_results: {settings.never_results}: has no AUC of Min-K; score it by --suite muse"
            )
    shots = {f"{FORGET_QUESTIONS}_shots": muse.forget_shots, f"{RETAIN_QUESTIONS}_shots": muse.retain_shots}
    texts = {"members": muse.members, "holdout": muse.holdout}
    return Asked(rows, {**shots, **texts}, {"corpus": corpus, "never_auc": never_auc})


def measure(target: Target, asked: Asked) -> Measured:
    """Generate for every row, and read every text once."""
    template = question_template(target.tokenizer, "question-answer")
    predictions = [one for name in SETS for one in _predictions(target, asked, template, name)]
    others: dict[str, Any] = {
        "texts": _texts(target, asked, template),
        "parity": "open-unlearning",
        "corpus": asked.options.get("corpus", ""),
    }
    if asked.options.get("never_auc") is not None:
        others["never_auc"] = asked.options["never_auc"]
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


def _predictions(target: Target, asked: Asked, template: QuestionTemplate, name: str) -> list[Prediction]:
    rows = asked.rows[name]
    shots = asked.others.get(f"{name}_shots", ())
    texts = [row.prompt if name == VERBMEM else few_shot(shots, row.prompt) for row in rows]
    prompts: list[list[int]] = [target.tokenizer(text).input_ids for text in texts]
    space = " " if name == VERBMEM else ""
    wholes: list[list[int]] = [
        target.tokenizer(f"{text}{space}{row.answer}").input_ids for text, row in zip(texts, rows, strict=True)
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
        kept = whole[: len(prompt) + MAX_TOKENS]
        wanted = template.decoded(kept).replace(template.decoded(prompt), "").strip()
        text = generation.text.strip() if name == VERBMEM else cut_at_stops(generation.text)
        predictions.append(predict(replace(row, answer=wanted), name, text))
    return predictions


def _texts(target: Target, asked: Asked, template: QuestionTemplate) -> dict[str, dict[str, list[float]]]:
    """Return loss, zlib, Min-K and Min-K++ of the texts of each side."""
    found: dict[str, dict[str, list[float]]] = {}
    for side in ("members", "holdout"):
        sequences = [
            LabelledSequence(tuple(target.tokenizer(text).input_ids[:MAX_TOKENS]), 1) for text in asked.others[side]
        ]
        read = likelihoods(
            target.model,
            [AskedAnswers((sequence,), in_detail=1) for sequence in sequences],
            padding=template.padding,
            batch_size=target.batch_size,
            exact=target.exact,
            progress=target.stage(side),
        )
        found[side] = {
            "loss": [one.loss for (one,) in read],
            "zlib": [zlib_ratio(one.loss, template.label_text(s)) for (one,), s in zip(read, sequences, strict=True)],
            "min_k": [min_k(one.log_probs) for (one,) in read],
            "min_k_plus_plus": [min_k(one.normed) for (one,) in read],
        }
    return found
