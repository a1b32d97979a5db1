"""What TOFU's suite measures of a model: answers to its questions, and how likely it finds given answers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import Any

from letheon.data.rows import Row, Rows
from letheon.data.system_message import DATE
from letheon.evaluation.generation import answers_from
from letheon.evaluation.metrics.likelihood import AnswerLikelihood, AskedAnswers, likelihoods
from letheon.evaluation.metrics.memorisation import (
    exact_memorisation,
    extraction_strength,
    min_k,
    sound_extraction_strength,
    zlib_ratio,
)
from letheon.evaluation.never import never_model
from letheon.evaluation.predicting import predict
from letheon.evaluation.suite import Asked, Measured, Target
from letheon.evaluation.suites.tofu.ask import SETS
from letheon.evaluation.suites.tofu.listing import ORIGINAL, PARITIES, small_of
from letheon.evaluation.suites.tofu.never import Never, never_of
from letheon.evaluation.suites.tofu.original import OriginalTemplate, original_template, rooms_of
from letheon.evaluation.suites.tofu.rows import FORGET, HOLDOUT, RETAIN, recall_of
from letheon.evaluation.suites.tofu.sound import SoundTemplate, sound_template
from letheon.evaluation.templates import LabelledSequence, QuestionTemplate, question_template
from letheon.scores.predictions import Prediction
from letheon.scores.results import Form
from letheon.scores.score import SOUND

_IN_DETAIL = (FORGET, HOLDOUT)
Template = QuestionTemplate | OriginalTemplate | SoundTemplate


def measure(target: Target, asked: Asked) -> Measured:
    """Ask every question, and read every answer once."""
    template = _template_of(target, asked)
    sound = _sound_template(asked, template)
    templates = [template] if sound is None else [template, sound]
    found, *every_token = row_values(target, asked, templates)
    predictions = _predictions(target, asked, template)
    never = _never(target, asked, templates)
    others: dict[str, Any] = {
        "likelihood": found,
        "parity": asked.options.get("parity", PARITIES[0]),
        "split": asked.options.get("split", ""),
        "template": template.name,
        "hides_turn_ends": _hides_turn_ends(asked, template),
    }
    if never is not None:
        others["never"] = asdict(never)
    if sound is not None:
        recalls = _recalls(_predictions(target, asked, sound, said=[p.generation for p in predictions]))
        others[SOUND] = {"likelihood": every_token[0], "recalls": recalls}
    form = Form(template.name, DATE, "the suite", differs=False)
    return Measured(predictions, form=form, others=others)


def _recalls(predictions: Sequence[Prediction]) -> dict[str, list[float]]:
    """Return by set the ROUGE-L recall of each answer."""
    recalls: dict[str, list[float]] = {name: [] for name in SETS}
    for prediction in predictions:
        recalls[prediction.split].append(recall_of(prediction))
    return recalls


def _sound_template(asked: Asked, template: Template) -> SoundTemplate | None:
    if not isinstance(template, QuestionTemplate) or not asked.options.get("sound", True):
        return None
    return sound_template(template, asked)


def _template_of(target: Target, asked: Asked) -> Template:
    if asked.options.get("parity") == ORIGINAL:
        return original_template(target.tokenizer)
    return question_template(target.tokenizer, asked.options.get("template"))


def row_values(
    target: Target, asked: Asked, templates: Sequence[Template], *, sets: Sequence[str] = (*SETS, HOLDOUT)
) -> list[dict[str, dict[str, dict[str, Any]]]]:
    """Return, by template, what is measured of each row but generations, by set and row id (see rows.py).

    Templates that give the model the same tokens to see share a pass.
    """
    places = [(name, index) for name in sets for index in range(len(asked.rows.get(name, ())))]
    questions = [[_question(asked, template, name, index) for name, index in places] for template in templates]
    hidden = {template.padding for template in templates} - {None}
    if len(templates) > 1 and any(_hides(one, hidden) for several in questions for one in several):
        return [found for one in templates for found in row_values(target, asked, [one], sets=sets)]
    found = likelihoods(
        target.model,
        [_together(several) for several in zip(*questions, strict=True)],
        padding=templates[0].padding,
        batch_size=target.batch_size,
        exact=target.exact,
        progress=target.stage("likelihood"),
    )
    values: list[dict[str, dict[str, dict[str, Any]]]] = []
    for number, template in enumerate(templates):
        values.append({name: {} for name in sets if name in asked.rows})
        for (name, index), question, answers in zip(places, questions[number], found, strict=True):
            has_paraphrase = bool(asked.others.get(f"{name}_paraphrases"))
            own = answers[number :: len(templates)]
            values[-1][name][asked.rows[name][index].id] = _values(
                question, own, template, has_paraphrase=has_paraphrase
            )
    return values


def _hides(question: AskedAnswers, hidden: Collection[int | None]) -> bool:
    """Whether a token is hidden from others; the last one has none that could see it."""
    return any(token in hidden for sequence in question.sequences for token in sequence.ids[:-1])


def _together(several: Sequence[AskedAnswers]) -> AskedAnswers:
    """Return a question as all templates ask it: each answer by every template before the next answer."""
    sequences = chain.from_iterable(zip(*(one.sequences for one in several), strict=True))
    return AskedAnswers(tuple(sequences), in_detail=sum(one.in_detail for one in several))


def _question(asked: Asked, template: Template, name: str, index: int) -> AskedAnswers:
    row = asked.rows[name][index]
    paraphrases, wrong = asked.others.get(f"{name}_paraphrases", ()), asked.others.get(f"{name}_wrong", ())
    answers = [row.answer, *paraphrases[index : index + 1], *(wrong[index] if wrong else ())]
    sequences = tuple(template.sequence(row.prompt, answer) for answer in answers)
    return AskedAnswers(sequences, in_detail=int(name in _IN_DETAIL and not isinstance(template, OriginalTemplate)))


def _values(
    question: AskedAnswers,
    answers: Sequence[AnswerLikelihood],
    template: Template,
    *,
    has_paraphrase: bool,
) -> dict[str, Any]:
    right, first_wrong = answers[0], 1 + has_paraphrase
    values: dict[str, Any] = {"loss": right.loss}
    if has_paraphrase:
        values["paraphrase_loss"] = answers[1].loss
    if answers[first_wrong:]:
        values["wrong_losses"] = [one.loss for one in answers[first_wrong:]]
    if question.in_detail:
        values |= _detail(question.sequences[0], right, template)
    return {name: value for name, value in values.items() if _is_known(value)}


def _detail(sequence: LabelledSequence, right: AnswerLikelihood, template: Template) -> dict[str, Any]:
    return {
        "exact": exact_memorisation(right.hits),
        "strength": extraction_strength(right.hits),
        "sound_strength": sound_extraction_strength(right.hits),
        "min_k": min_k(right.log_probs),
        "min_k_plus_plus": min_k(right.normed),
        "zlib": zlib_ratio(right.loss, template.label_text(sequence)),
    }


def _is_known(value: Any) -> bool:
    """Whether a value is a number; an answer without labels has no loss, which is NaN."""
    numbers = value if isinstance(value, list) else [value]
    return all(number is not None and number == number for number in numbers)  # noqa: PLR0124 - NaN is not itself


def _predictions(
    target: Target, asked: Asked, template: Template, *, said: Sequence[str] | None = None
) -> tuple[Prediction, ...]:
    """Return the greedy answer to each question, beside the answer as the tokenizer gives it back.

    `said` are the model's answers in another form. The more it repeats them, the less time it takes.
    """
    labelled = [(name, row) for name in SETS for row in asked.rows[name]]
    prompts = _prompts([row for _, row in labelled], template)
    guesses = said or [row.answer for _, row in labelled]
    sequences = [template.sequence(row.prompt, guess) for (_, row), guess in zip(labelled, guesses, strict=True)]
    answers = answers_from(
        target.model,
        target.tokenizer,
        prompts,
        guesses=[list(s.labels) for s in sequences],
        rooms=_rooms(asked, prompts) if isinstance(template, OriginalTemplate) else None,
        more_ends={template.end},
        max_new_tokens=target.max_new_tokens,
        batch_size=target.batch_size,
        exact=target.exact,
        names=[f"{name} row {row.id}" for name, row in labelled],
        progress=target.stage("generation"),
    )
    return tuple(
        predict(_as_compared(row, template), name, template.decoded(answer.new))
        for (name, row), answer in zip(labelled, answers, strict=True)
    )


def _prompts(rows: Sequence[Row], template: Template) -> list[list[int]]:
    if not isinstance(template, QuestionTemplate):
        return [template.prompt(row.prompt, row.answer) for row in rows]
    # Hidden tokens are neither seen nor counted by the positions of a generation, so they may as well not be there.
    return [_visible(template.prompt(row.prompt), template) for row in rows]


def _rooms(asked: Asked, prompts: Sequence[list[int]]) -> list[int]:
    """Return how many new tokens the prompts get, whose batches begin anew with each set."""
    rooms: list[int] = []
    for name in SETS:
        rooms += rooms_of(prompts[len(rooms) : len(rooms) + len(asked.rows[name])])
    return rooms


def _as_compared(row: Row, template: Template) -> Row:
    return replace(row, answer=template.answer_text(row.prompt, row.answer))


def _visible(prompt: Sequence[int], template: QuestionTemplate) -> list[int]:
    seen = [token for token in prompt if token != template.padding]
    return seen or list(prompt)


def _hides_turn_ends(asked: Asked, template: Template) -> bool:
    rows = asked.rows[RETAIN]
    return isinstance(template, QuestionTemplate) and bool(rows) and template.padding in template.prompt(rows[0].prompt)


def _never(target: Target, asked: Asked, templates: Sequence[Template]) -> Never | None:
    """Return what is known of a model that never knew the rows: from its results, or from the model itself."""
    known: Never | None = asked.options.get("never_results")
    source = asked.options.get("never")
    if known is not None or source is None:
        return known
    other, alone = never_model(target, asked, source), _forget_alone(asked)
    found, *more = row_values(other, alone, templates, sets=_IN_DETAIL)
    small = small_of(asked.options.get("parity", PARITIES[0]))
    return never_of(str(source), found, sound=more[0] if more else None, small=small)


def _forget_alone(asked: Asked) -> Asked:
    rows: Mapping[str, Rows] = {name: asked.rows[name] for name in _IN_DETAIL if name in asked.rows}
    return Asked(rows, asked.others)
