"""What RWKU measures of a model besides its probes: general abilities, and how familiar texts are."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from letheon.data.benchmarks.rwku_abilities import (
    Abilities,
    OpenQuestion,
    TruthQuestion,
    WorkedChoice,
)
from letheon.evaluation.batches import token_ids
from letheon.evaluation.generation import answers_from
from letheon.evaluation.metrics.likelihood import AnswerLikelihood, AskedAnswers, likelihoods
from letheon.evaluation.metrics.memorisation import min_k, zlib_ratio
from letheon.evaluation.metrics.mmlu import Prompt, letter_probabilities
from letheon.evaluation.metrics.normalised_answers import matches_any, word_f1
from letheon.evaluation.suite import Target
from letheon.evaluation.suites.rwku.ability_prompts import (
    LETTERS,
    SHORT_ANSWER,
    fact_prompt,
    general_prompt,
    reasoning_prompt,
    truth_prompt,
)
from letheon.evaluation.suites.rwku.prompts import ANSWER, NO_ANSWER
from letheon.evaluation.templates import LabelledSequence

MAX_REASONING_TOKENS, MAX_FACT_TOKENS = 256, 30
MIN_K_SHARE = 0.2
_CONCLUSION = re.compile(r"[t|T]he answer is (.*?)\.")
Values = Mapping[str, Sequence[float]]
"""By score, a value for each question or text."""
Chat = Callable[[str], str]
"""Makes the text that the model is given of what the user says, up to where the answer begins."""


def measure_abilities(target: Target, asked: Abilities, chat: Chat) -> dict[str, Values]:
    """Return the values of each set that is there, by the name of the set."""
    found: dict[str, Values] = {}
    if asked.general:
        found["general"] = _general(target, asked.general, chat)
    if asked.reasoning:
        found["reasoning"] = _reasoning(target, asked.reasoning, chat)
    if asked.truthfulness:
        found["truthfulness"] = _truthfulness(target, asked.truthfulness, chat)
    if asked.factuality:
        found["factuality"] = _factuality(target, asked.factuality, chat)
    return {**found, **{name: _familiarity(target, texts) for name, texts in asked.texts.items()}}


def conclusion(said: str) -> str:
    """Return what stands between "the answer is" and the next full stop on its line, else all, stripped."""
    found = _CONCLUSION.search(said)
    return (said if found is None else found.group(1)).strip() or NO_ANSWER


def reasoning_values(said: str, asked: OpenQuestion) -> tuple[bool, bool]:
    """Return whether an answer is right as RWKU compares it, and whether it is the whole right answer.

    RWKU takes an answer that is one text for a list, so that each of its characters counts as a right answer: "(B)"
    and "B" are right for "(B)", and nothing is for "valid".
    """
    text = conclusion(said)
    letters = list(asked.answers[0]) if asked.answer_is_text else asked.answers
    return matches_any(text, letters), matches_any(text, asked.answers)


def truth_values(log_probs: Mapping[str, float], asked: TruthQuestion) -> tuple[bool, float]:
    """Return MC1 and MC2 (Lin et al., arXiv 2109.07958) by the summed log-probability of each statement, in nats.

    MC1: whether the first true statement is likelier than every false one. MC2: the share of the true statements in the
    probability of all, 0 to 1.
    """
    first = next(log_probs[text] for text, is_true in asked.single if is_true)
    is_first = first > max(log_probs[text] for text, is_true in asked.single if not is_true)
    largest = max(log_probs[text] for text, _ in asked.several)
    weights = [(math.exp(log_probs[text] - largest), is_true) for text, is_true in asked.several]
    return is_first, sum(weight for weight, is_true in weights if is_true) / sum(weight for weight, _ in weights)


def begun(text: str) -> str:
    """Return a prompt with "A:" after it, and a space before that unless white space is there."""
    space = "" if text.endswith(("\n", " ")) else " "
    return f"{text}{space}{SHORT_ANSWER}"


def _general(target: Target, asked: Sequence[WorkedChoice], chat: Chat) -> Values:
    rows = token_ids(target.tokenizer, [f"{chat(general_prompt(one))}{ANSWER}" for one in asked])
    letters = [target.tokenizer.encode(f" {letter}", add_special_tokens=False)[-1] for letter in LETTERS]
    probabilities = letter_probabilities(
        target.model,
        [Prompt(tuple(row), 0) for row in rows],
        letters,
        batch_size=target.batch_size,
        exact=target.exact,
    )
    chosen: list[int] = probabilities.argmax(dim=1).tolist()
    return {"general": [float(one.question.answer == choice) for one, choice in zip(asked, chosen, strict=True)]}


def _reasoning(target: Target, asked: Sequence[OpenQuestion], chat: Chat) -> Values:
    texts = [begun(chat(reasoning_prompt(one))) for one in asked]
    said = _said(target, texts, "reasoning", MAX_REASONING_TOKENS)
    values = [reasoning_values(text, one) for text, one in zip(said, asked, strict=True)]
    as_in_rwku, whole = (tuple(float(pair[i]) for pair in values) for i in (0, 1))
    return {"reasoning": as_in_rwku, "reasoning_whole": whole}


def _factuality(target: Target, asked: Sequence[OpenQuestion], chat: Chat) -> Values:
    texts = [f"{chat(fact_prompt(one))}{SHORT_ANSWER}" for one in asked]
    pairs = list(zip(_said(target, texts, "factuality", MAX_FACT_TOKENS), asked, strict=True))
    return {
        "factuality": [word_f1(text, one.answers) for text, one in pairs],
        "factuality_exact": [float(matches_any(text, one.answers)) for text, one in pairs],
    }


def _truthfulness(target: Target, asked: Sequence[TruthQuestion], chat: Chat) -> Values:
    statements = [tuple(dict.fromkeys(text for text, _ in (*one.single, *one.several))) for one in asked]
    prompts = [begun(chat(truth_prompt(one))) for one in asked]
    starts = [len(row) for row in token_ids(target.tokenizer, prompts)]
    questions = [
        AskedAnswers(
            tuple(
                LabelledSequence(tuple(ids), start)
                for ids in token_ids(target.tokenizer, [f"{prompt} {text}" for text in several])
            )
        )
        for prompt, start, several in zip(prompts, starts, statements, strict=True)
    ]
    found = _read(target, questions, "truthfulness")
    values = []
    for one, several, question, answers in zip(asked, statements, questions, found, strict=True):
        sums = [-a.loss * len(s.labels) if s.labels else 0.0 for a, s in zip(answers, question.sequences, strict=True)]
        values.append(truth_values(dict(zip(several, sums, strict=True)), one))
    return {"truthfulness": [float(mc1) for mc1, _ in values], "truthfulness_mc2": [mc2 for _, mc2 in values]}


def _familiarity(target: Target, texts: Sequence[str]) -> Values:
    """Return loss, zlib, Min-K and Min-K++ (20%) of each text, over every token but the first."""
    rows = token_ids(target.tokenizer, texts)
    # The last label's log-probability is not kept; behind an end that is not looked at no token is the last.
    questions = [AskedAnswers((LabelledSequence((*ids, ids[-1]), 1),), in_detail=1) for ids in rows]
    read = [(text, one) for text, (one,) in zip(texts, _read(target, questions, "membership"), strict=True)]
    told = [(text, one, -fmean(one.log_probs)) for text, one in read if one.log_probs]
    return {
        "loss": [loss for _, _, loss in told],
        "zlib": [zlib_ratio(loss, text) for text, _, loss in told],
        "min_k": [min_k(one.log_probs, MIN_K_SHARE) for _, one, _ in told],
        "min_k_plus_plus": [min_k(one.normed, MIN_K_SHARE) for _, one, _ in told],
    }


def _said(target: Target, texts: Sequence[str], name: str, max_new_tokens: int) -> list[str]:
    answers = answers_from(
        target.model,
        target.tokenizer,
        token_ids(target.tokenizer, texts),
        max_new_tokens=max_new_tokens,
        batch_size=target.batch_size,
        exact=target.exact,
        names=[f"{name} question {number}" for number in range(1, len(texts) + 1)],
        progress=target.stage(name),
    )
    return [decoded(target, answer.new) for answer in answers]


def decoded(target: Target, ids: list[int]) -> str:
    """Return tokens as text without special tokens, spaces cleaned up where the tokenizer does that."""
    text = str(target.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    cleans = getattr(target.tokenizer, "clean_up_tokenization_spaces", False)
    return str(target.tokenizer.clean_up_tokenization(text)) if cleans else text


def _read(target: Target, asked: Sequence[AskedAnswers], name: str) -> list[tuple[AnswerLikelihood, ...]]:
    return likelihoods(
        target.model,
        asked,
        padding=None,
        batch_size=target.batch_size,
        exact=target.exact,
        progress=target.stage(name),
    )
