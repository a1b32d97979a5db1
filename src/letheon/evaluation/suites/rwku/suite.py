"""The suite of RWKU (Jin et al., arXiv 2406.10890), as its own repository scores it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from letheon.data.benchmarks.rwku import FILES, FLUENCY, FORGET_SETS, NEIGHBOUR_CLOZE, NEIGHBOUR_QUESTIONS
from letheon.data.benchmarks.rwku_abilities import FORGET_TEXTS, RETAIN_TEXTS
from letheon.evaluation.metrics.memorisation import mean
from letheon.evaluation.sound import sound_variants
from letheon.evaluation.suite import Asked, Measured, Note, Plot, Reading, Suite, Target
from letheon.evaluation.suites.rwku.recall import recall_of
from letheon.scores.results import PlainResults
from letheon.scores.score import SOUND, Better, Score, Scores, summaries
from letheon.settings import EvaluateSettings

NEIGHBOUR_SETS = (NEIGHBOUR_CLOZE, NEIGHBOUR_QUESTIONS)
_NO_SENTENCES = "needs NLTK's model of sentences: python -m nltk.downloader punkt_tab"
_NOT_ASKED = "the data folder has no such probes"
_TEXT_SETS: tuple[tuple[str, str, Better], ...] = (
    (FORGET_TEXTS, "Texts about the people", "higher"),
    (RETAIN_TEXTS, "Texts about others", "lower"),
)
_ATTACKS = {"loss": "loss (nats)", "zlib": "zlib", "min_k": "Min-K", "min_k_plus_plus": "Min-K++"}
"""Values by which a text is recognised, each lower for a more familiar one."""

KNOWN = (
    Score("forget.cloze", "Forget, fill in the blank", "lower", "forgetting"),
    Score("forget.questions", "Forget, questions", "lower", "forgetting"),
    Score("forget.attacks", "Forget, attacks", "lower", "forgetting"),
    Score("neighbour.cloze", "Neighbours, fill in the blank", "higher", "retention"),
    Score("neighbour.questions", "Neighbours, questions", "higher", "retention"),
    Score("forget.all", "Forget, all", "lower", "aggregate", is_headline=True),
    Score("neighbour.all", "Neighbours, all", "higher", "aggregate", is_headline=True),
    Score("balance", "Forgotten and kept", "higher", "aggregate", is_headline=True),
    Score("ngram_entropy", "N-gram entropy (bits)", "higher", "fluency", bounds=None),
    Score("ngram_entropy_plain", "N-gram entropy, words at spaces (bits)", "higher", "fluency", bounds=None),
    Score("utility.general", "General ability (MMLU)", "higher", "general"),
    Score("utility.reasoning", "Reasoning (BBH)", "higher", "general"),
    Score("utility.reasoning_whole", "Reasoning (BBH), whole answers", "higher", "general"),
    Score("utility.truthfulness", "Truthfulness (TruthfulQA MC1)", "higher", "general"),
    Score("utility.truthfulness_mc2", "Truthfulness (TruthfulQA MC2)", "higher", "general"),
    Score("utility.factuality", "Factuality (TriviaQA F1)", "higher", "general"),
    Score("utility.factuality_exact", "Factuality (TriviaQA, exact)", "higher", "general"),
    *(
        Score(f"{name}.{attack}", f"{label}, {said}", better, "privacy", bounds=None)
        for name, label, better in _TEXT_SETS
        for attack, said in _ATTACKS.items()
    ),
)
_OF_SET = {name: score.name for name, score in zip((*FORGET_SETS, *NEIGHBOUR_SETS), KNOWN, strict=False)}


def _ask(settings: EvaluateSettings, note: Note | None) -> Asked:
    from letheon.evaluation.suites.rwku.measure import ask  # brings torch along, which reports do without

    return ask(settings, note)


def _measure(target: Target, asked: Asked) -> Measured:
    from letheon.evaluation.suites.rwku.measure import measure

    return measure(target, asked)


def _aggregate(blank: PlainResults, measured: Measured) -> PlainResults:
    """Return the mean recall of each set, what is made of them, and the entropies; of nothing there is none."""
    recalls = {name: [recall_of(one) for one in measured.predictions if one.split == name] for name in _OF_SET}
    values = _values({**measured.others, "recalls": recalls})
    sound = sound_variants(KNOWN, _values(measured.others.get(SOUND, {})))
    counts = {name: sum(one.split == name for one in measured.predictions) for name in FILES}
    has_fluency = counts[FLUENCY] > 0
    missing = {name: _NOT_ASKED for name, value in values.items() if value is None}
    if "ngram_entropy" in missing and has_fluency:
        missing["ngram_entropy"] = _NO_SENTENCES
    scores = tuple(replace(s, value=values[s.name], missing=missing.get(s.name)) for s in KNOWN)
    return replace(
        blank,
        scores=Scores((*scores, *sound, *summaries(scores))),
        num_rows={name: {"probes": number} for name, number in counts.items() if number},
        missing={**measured.missing, **missing},
        warnings=(*blank.warnings, *_warnings(measured)),
        measured=dict(measured.others),
    )


def _values(others: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the scores of recalls by set, entropies, and what is measured besides."""
    recalls, entropies = others.get("recalls", {}), others.get("entropies", {})
    values = {name: mean(recalls.get(split, ())) for split, name in _OF_SET.items()}
    values["forget.all"] = _mean_of_known([values[_OF_SET[name]] for name in FORGET_SETS])
    values["neighbour.all"] = _mean_of_known([values[_OF_SET[name]] for name in NEIGHBOUR_SETS])
    left, kept = values["forget.all"], values["neighbour.all"]
    values["balance"] = None if left is None or kept is None else (1 - left + kept) / 2
    values["ngram_entropy"] = mean(entropies.get("nltk", ()))
    values["ngram_entropy_plain"] = mean(entropies.get("plain", ()))
    return {**values, **_beside(others.get("abilities", {}))}


def _beside(abilities: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, float | None]:
    """Return the means of what is measured besides probes and instructions."""
    of_texts = {
        f"{name}.{attack}": abilities.get(name, {}).get(attack, ()) for name, *_ in _TEXT_SETS for attack in _ATTACKS
    }
    told = {name: values for one in abilities.values() for name, values in one.items()}
    of_questions = {s.name: told.get(s.name.removeprefix("utility."), ()) for s in KNOWN if s.role == "general"}
    return {name: mean(values) for name, values in {**of_questions, **of_texts}.items()}


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    return mean([value for value in values if value is not None])


def _warnings(measured: Measured) -> list[str]:
    found = []
    if measured.others.get("in_chat") is False:
        found.append(
            "RWKU asks chat models; this one was asked without a chat template, so its scores cannot be compared with "
            "published ones"
        )
    if measured.others.get("doubles_bos"):
        beside = f"; scores with one stand beside the others, under names that end in _{SOUND}"
        found.append(
            "prompts begin with the beginning of sequence twice, as in RWKU's own evaluation"
            f"{beside if SOUND in measured.others else ''}"
        )
    reasoning = measured.others.get("abilities", {}).get("reasoning", {})
    if reasoning.get("reasoning") != reasoning.get("reasoning_whole"):
        found.append(
            "reasoning compares an answer with each character of the right one, as RWKU's own evaluation does; the "
            "score of whole answers is beside it"
        )
    return found


READINGS = (
    Reading(
        "Forget",
        "0 to 1, ↓ lower is better",
        "mean ROUGE-L recall of answers about the people to forget: blanks filled in, questions, and attacks that ask "
        "in other ways.",
    ),
    Reading(
        "Neighbours",
        "0 to 1, ↑ higher is better",
        "the same of what is close to them and is not to be forgotten.",
    ),
    Reading(
        "Forgotten and kept",
        "0 to 1, ↑ higher is better, 0.5 is what a model gets that says nothing",
        "mean of 1 - the score of all probes to forget, and the score of all neighbours.",
    ),
    Reading(
        "General ability, reasoning, truthfulness, factuality",
        "0 to 1, ↑ higher is better",
        "share of right answers to MMLU, BBH and TruthfulQA, and word F1 of answers to TriviaQA.",
    ),
    Reading(
        "Texts about the people and about others",
        "from 0, ↑ higher is better of the people, ↓ lower of others",
        "how unfamiliar texts are to the model, by loss, loss over zlib bytes, Min-K and Min-K++ (20%).",
    ),
    Reading(
        "N-gram entropy",
        "bits, ↑ higher is better",
        "how little long answers repeat themselves: weighted entropy of their 2- and 3-grams.",
    ),
)

SUITE = Suite(
    name="rwku",
    scores=Scores((*KNOWN, *summaries(()))),
    objective="balance",
    ask=_ask,
    measure=_measure,
    aggregate=_aggregate,
    readings=READINGS,
    plot=Plot("neighbour.all", "forget.all"),
    takes=("sound",),
    unpredicted=("entropies", "abilities"),
    parities=("original",),
    sets=tuple(FILES),
)
