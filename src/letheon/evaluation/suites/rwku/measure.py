"""What RWKU's suite asks and measures: short answers to probes, long ones to instructions, and abilities.py."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from letheon.evaluation.suites.rwku.abilities import Chat, decoded, measure_abilities
from letheon.evaluation.suites.rwku.prompts import prompt_of
from letheon.evaluation.suites.rwku.recall import recall_of
from letheon.evaluation.templates import QUESTION_ANSWER, filled
from letheon.scores.predictions import Prediction
from letheon.scores.score import SOUND
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
    options: dict[str, Any] = {"template": settings.template, "subject": settings.split, "abilities": abilities}
    options["sound"] = settings.sound
    return Asked(rows, options=options)


def measure(target: Target, asked: Asked) -> Measured:
    """Generate an answer to every probe and instruction."""
    in_chat = asked.options.get("template") != QUESTION_ANSWER and bool(target.tokenizer.chat_template)
    chat: Chat = partial(_in_chat, target) if in_chat else str
    predictions = _predictions(target, asked, chat)
    others: dict[str, Any] = {
        "parity": "original",
        "subject": asked.options.get("subject"),
        "in_chat": in_chat,
        "doubles_bos": in_chat and _doubles_bos(target, asked, chat),
        **_beside(target, _abilities(asked), chat, predictions),
    }
    if others["doubles_bos"] and asked.options.get("sound", True):
        others[SOUND] = _with_one_bos(target, asked, chat, predictions)
    return Measured(tuple(predictions), others=others)


def _with_one_bos(target: Target, asked: Asked, chat: Chat, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return what is measured after prompts that begin with the beginning of sequence once, the recalls by set too."""

    def once(said: str) -> str:
        return chat(said).removeprefix(str(target.tokenizer.bos_token))

    again = _predictions(target, asked, once, guesses=[one.generation for one in predictions])
    recalls = {name: [recall_of(one) for one in again if one.split == name] for name in asked.rows if name != FLUENCY}
    # Bare texts have no prompt.
    return {"recalls": recalls, **_beside(target, replace(_abilities(asked), texts={}), once, again)}


def _abilities(asked: Asked) -> Abilities:
    found: Abilities = asked.options.get("abilities", Abilities())
    return found


def _beside(target: Target, abilities: Abilities, chat: Chat, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return what is measured besides the answers to probes."""
    said = [one.generation for one in predictions if one.split == FLUENCY]
    return {"entropies": _entropies(said), "abilities": measure_abilities(target, abilities, chat)}


def _predictions(target: Target, asked: Asked, chat: Chat, *, guesses: Sequence[str] | None = None) -> list[Prediction]:
    """Return the answers to all sets; the more of them repeat `guesses`, the less time it takes."""
    found: list[Prediction] = []
    for name in (name for name in FILES if name in asked.rows):
        rows = asked.rows[name]
        own = [row.answer for row in rows] if guesses is None else guesses[len(found) : len(found) + len(rows)]
        found += _predictions_of(target, rows, name, chat, own)
    return found


def _predictions_of(
    target: Target, rows: Sequence[Row], name: str, chat: Chat, guesses: Sequence[str]
) -> list[Prediction]:
    is_long = name == FLUENCY
    texts = [_text(row, name, chat) for row in rows]
    prompts = token_ids(target.tokenizer, texts)
    wholes = token_ids(target.tokenizer, [f"{text} {guess}" for text, guess in zip(texts, guesses, strict=True)])
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


def _text(row: Row, name: str, chat: Chat) -> str:
    said, begun = prompt_of(row, name)
    return chat(said) + begun


def _in_chat(target: Target, said: str) -> str:
    return filled(target.tokenizer, [{"role": "user", "content": said}], add_generation_prompt=True)


def _end_tokens(target: Target, names: Sequence[str]) -> set[int]:
    # An unknown name gives the token for what is unknown, which ends an answer in the reference too.
    found = [target.tokenizer.convert_tokens_to_ids(name) for name in names]
    return {int(token) for token in (*found, target.tokenizer.eos_token_id) if token is not None}


def _doubles_bos(target: Target, asked: Asked, chat: Chat) -> bool:
    """Whether prompts begin with the beginning of sequence twice: from the chat template and from the tokenizer."""
    name, rows = next(iter(asked.rows.items()))
    ids = token_ids(target.tokenizer, [_text(rows[0], name, chat)])[0]
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
