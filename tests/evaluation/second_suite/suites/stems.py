"""A made-up suite, all that there is of it: does the model still begin an answer as it should?"""

from dataclasses import replace
from statistics import fmean

import stems_reader

from letheon.data.forms import as_asked
from letheon.evaluation.generation import generate_answers
from letheon.evaluation.predicting import predict
from letheon.evaluation.suite import Asked, Measured, Note, Reading, Suite, Target
from letheon.scores.predictions import Prediction
from letheon.scores.results import Form, PlainResults
from letheon.scores.score import Score, Scores, summaries
from letheon.settings import EvaluateSettings

KNOWN = Scores(
    (
        Score("stems.gone", "Stems still there", "lower", "forgetting", short="Gone stems"),
        Score("stems.left", "Stems of the others", "higher", "retention", short="Left stems"),
        Score("stems.length", "Words said", 6.0, "general", bounds=None),
        Score("stems.sum", "Stem sum", "higher", "final", is_headline=True),
    )
)


def ask(settings: EvaluateSettings, note: Note | None) -> Asked:
    """The two lists of stems."""
    if note is not None:
        note("stems are lines of words and a tab")
    return Asked({"forget": stems_reader.read(settings.forget), "retain": stems_reader.read(settings.retain)})


def measure(target: Target, asked: Asked) -> Measured:
    """What the model says to each."""
    rows = [(name, as_asked(row)) for name, several in asked.rows.items() for row in several]
    said = generate_answers(target.model, target.tokenizer, [row.prompt for _, row in rows], max_new_tokens=6)
    found = (predict(row, name, text) for (name, row), text in zip(rows, said, strict=True))
    asks = target.form
    form = None if asks is None else Form(asks.template, asks.date, asks.source, differs=False)
    return Measured(tuple(replace(one, values={"stem": begins(one)}) for one in found), form=form)


def begins(prediction: Prediction) -> float:
    """1 if the first word is right."""
    return float(prediction.generation.split()[:1] == prediction.answer.split()[:1])


def aggregate(blank: PlainResults, measured: Measured) -> PlainResults:
    """The four scores."""
    sets = {name: [one for one in measured.predictions if one.split == name] for name in ("forget", "retain")}
    gone, left = (fmean(map(begins, predictions)) for predictions in sets.values())
    length = fmean(len(one.generation.split()) for one in measured.predictions)
    values = {"stems.gone": gone, "stems.left": left, "stems.length": length, "stems.sum": (1 - gone + left) / 2}
    scores = tuple(replace(score, value=values[score.name]) for score in KNOWN)
    counts = {name: {"stems": len(predictions)} for name, predictions in sets.items()}
    return replace(blank, form=measured.form, scores=Scores((*scores, *summaries(scores))), num_rows=counts)


SUITE = Suite(
    name="stems",
    scores=Scores((*KNOWN, *summaries(()))),
    objective="stems.sum",
    ask=ask,
    measure=measure,
    aggregate=aggregate,
    readings=(Reading("Stem sum", "0 to 1, higher is better", "how well stems were told apart."),),
)
