"""What RWKU's suite asks and measures: short answers to probes, long ones to instructions, and abilities.py."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from letheon.data.benchmarks.rwku import FILES, FLUENCY, read_rwku
from letheon.data.benchmarks.rwku_abilities import Abilities, read_abilities
from letheon.data.forms import AUTO, CHAT
from letheon.data.rows import Row
from letheon.errors import SettingsError
from letheon.evaluation.batches import token_ids
from letheon.evaluation.generation import answers_from
from letheon.evaluation.metrics.distinct_words import ngram_entropy
from letheon.evaluation.predicting import predict
from letheon.evaluation.suite import Asked, Measured, Note, Target
from letheon.evaluation.suites.rwku.abilities import decoded, measure_abilities
from letheon.evaluation.suites.rwku.prompts import prompt_of
from letheon.evaluation.templates import QUESTION_ANSWER, filled
from letheon.scores.predictions import Prediction
from letheon.settings import EvaluateSettings
from letheon.settings.suites import SUITE_FORMS, data_folder

MAX_NEW_TOKENS, MAX_FLUENT_TOKENS = 30, 256
ENDS = ("<|eot_id|>", " \n", "\n")
"""Tokens that end an answer to a probe where the vocabulary holds them by these very names."""
FLUENT_ENDS = ENDS[:1]


def ask(settings: EvaluateSettings, note: Note | None) -> Asked:
    """Read and check all that the suite asks; `note` hears what was read.

    Raises:
        DataError: there are no probes, one is not usable, or --split is nobody's name.
        SettingsError: the suite has no such form.
    """
    if settings.template not in (None, AUTO, *SUITE_FORMS):
        raise SettingsError(
            f"template: expected {CHAT}, or {QUESTION_ANSWER} to ask without a chat template, got "
            f"'{settings.template}'; leave it out for the tokenizer's own"
        )
    folder = data_folder(settings.suite, settings.data)
    rows, abilities = read_rwku(folder, settings.split), read_abilities(folder, settings.split)
    if note is not None:
        about = "" if settings.split is None else f" about {settings.split}"
        sizes = {**{name: len(one) for name, one in rows.items()}, **abilities.sizes()}
        note(f"RWKU{about}: " + ", ".join(f"{size} {name}" for name, size in sizes.items()))
    options = {"template": settings.template, "subject": settings.split, "abilities": abilities}
    return Asked(rows, options=options)


def measure(target: Target, asked: Asked) -> Measured:
    """Generate an answer to every probe and instruction."""
    in_chat = asked.options.get("template") != QUESTION_ANSWER and bool(target.tokenizer.chat_template)
    predictions = [one for name in FILES if name in asked.rows for one in _predictions(target, asked, name, in_chat)]
    said = [one.generation for one in predictions if one.split == FLUENCY]
    others: dict[str, Any] = {
        "parity": "original",
        "subject": asked.options.get("subject"),
        "in_chat": in_chat,
        "doubles_bos": in_chat and _doubles_bos(target, asked),
        "entropies": _entropies(said),
        "abilities": measure_abilities(
            target, asked.options.get("abilities", Abilities()), partial(_said_by_user, target, in_chat=in_chat)
        ),
    }
    return Measured(tuple(predictions), others=others)


def _predictions(target: Target, asked: Asked, name: str, in_chat: bool) -> list[Prediction]:
    rows, is_long = asked.rows[name], name == FLUENCY
    texts = [_text(target, row, name, in_chat) for row in rows]
    prompts = token_ids(target.tokenizer, texts)
    wholes = token_ids(target.tokenizer, [f"{text} {row.answer}" for text, row in zip(texts, rows, strict=True)])
    answers = answers_from(
        target.model,
        target.tokenizer,
        prompts,
        guesses=[w[len(p) :] if w[: len(p)] == p else [] for w, p in zip(wholes, prompts, strict=True)],
        more_ends=_end_tokens(target, FLUENT_ENDS if is_long else ENDS),
        max_new_tokens=MAX_FLUENT_TOKENS if is_long else MAX_NEW_TOKENS,
        batch_size=target.batch_size,
        exact=target.exact,
        names=[f"{name} {row.id}" for row in rows],
        progress=target.stage(name),
    )
    found = []
    for row, answer in zip(rows, answers, strict=True):
        text = decoded(target, answer.new[:-1] if answer.has_ended else answer.new)
        found.append(predict(row, name, text if is_long else text.strip(), has_ended=answer.has_ended))
    return found


def _text(target: Target, row: Row, name: str, in_chat: bool) -> str:
    said, begun = prompt_of(row, name)
    return _said_by_user(target, said, in_chat=in_chat) + begun


def _said_by_user(target: Target, said: str, *, in_chat: bool) -> str:
    if not in_chat:
        return said
    return filled(target.tokenizer, [{"role": "user", "content": said}], add_generation_prompt=True)


def _end_tokens(target: Target, names: Sequence[str]) -> set[int]:
    # An unknown name gives the token for what is unknown, which ends an answer in the reference too.
    found = [target.tokenizer.convert_tokens_to_ids(name) for name in names]
    return {int(token) for token in (*found, target.tokenizer.eos_token_id) if token is not None}


def _doubles_bos(target: Target, asked: Asked) -> bool:
    """Whether prompts begin with the beginning of sequence twice: from the chat template and from the tokenizer."""
    name, rows = next(iter(asked.rows.items()))
    ids = token_ids(target.tokenizer, [_text(target, rows[0], name, True)])[0]
    bos = target.tokenizer.bos_token_id
    return bos is not None and ids[:2] == [bos, bos]


def _entropies(texts: Sequence[str]) -> Mapping[str, list[float]]:
    """Return the n-gram entropy of each text, over words of white space and over those of NLTK if it is complete."""
    found = {"plain": [ngram_entropy(text.split()) for text in texts]}
    from nltk import word_tokenize

    try:
        return {**found, "nltk": [ngram_entropy(word_tokenize(text)) for text in texts]}
    except LookupError:  # its model of sentences is a download of its own
        return found
