"""The suite of LUME: everything the official evaluation measures, from a model to an `Evaluation`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.data.forms import as_asked
from letheon.data.rows import Row, Rows
from letheon.errors import EvaluationError
from letheon.evaluation.evaluate import evaluate_suite
from letheon.evaluation.fluency import uncut_tokens
from letheon.evaluation.generation import generate
from letheon.evaluation.in_form import AskedForm, form_predictions, resolve_form
from letheon.evaluation.metrics.found import MembershipScores, MmluScores
from letheon.evaluation.metrics.harness import mmlu_with_harness
from letheon.evaluation.metrics.membership import check_members, document_losses, membership_scores
from letheon.evaluation.metrics.mmlu import Subject, read_mmlu, score_mmlu
from letheon.evaluation.predicting import predict
from letheon.evaluation.suite import Asked, Measured, Progress, Target
from letheon.evaluation.suites.lume.official import check_rows
from letheon.evaluation.suites.lume.suite import SUITE
from letheon.scores.predictions import Prediction
from letheon.scores.results import Evaluation, Form

MAX_NEW_TOKENS = 256


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    forget: Iterable[Row],
    retain: Iterable[Row],
    members: Sequence[str] | None = None,
    nonmembers: Sequence[str] | None = None,
    mmlu: Path | None = None,
    mmlu_limit: int | None = None,
    mmlu_harness: bool = False,
    exact: bool = False,
    whole_generations: bool = False,
    batch_size: int = 32,
    max_new_tokens: int = MAX_NEW_TOKENS,
    form: AskedForm | None = None,
    model_name: str = "",
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Generate for every row, attack the documents, ask MMLU, and score all of it officially.

    `members` and `nonmembers` are whole documents, `mmlu` a folder of CSV files; with `mmlu_harness` MMLU is asked
    through lm-evaluation-harness instead. A question's generation is cut once nothing that could follow would match,
    which changes no score, unless `whole_generations` or `exact` (one row at a time) is asked for. What is not given is
    missing from the results with its reason. Inputs are checked before the model is used. A membership or MMLU score
    that cannot be had from this model (a document that does not fit, losses that are not finite) is missing too, so
    that the generations are not lost.

    The official scores ask with raw prompts. With `form` the rows are asked in it too, where that gives the model other
    tokens, and both scores stand side by side. A document is asked by its first half for the second.

    Raises:
        EvaluationError: there are no rows, an id comes twice, a prompt does not fit, one set of documents is given
            without the other, members hold retain rows, or the MMLU folder is not one.
    """
    rows = {name: Rows(name, tuple(given), ()) for name, given in (("forget", forget), ("retain", retain))}
    others = {
        "members": members,
        "nonmembers": nonmembers,
        "mmlu": None if mmlu is None else read_mmlu(mmlu, limit_per_subject=mmlu_limit),
    }
    asked = Asked(
        rows,
        {name: found for name, found in others.items() if found is not None},
        {"mmlu_limit": mmlu_limit, "mmlu_harness": mmlu_harness},
    )
    check(asked)
    target = Target(
        model, tokenizer, form, exact, whole_generations, batch_size, max_new_tokens=max_new_tokens, progress=progress
    )
    return evaluate_suite(SUITE, target, asked, model_name=model_name, provenance=provenance or {})


def check(asked: Asked) -> None:
    """Refuse what cannot be scored, before the model is used.

    Raises:
        EvaluationError: there are no rows, an id comes twice, one set of documents is given without the other, or
            members hold retain rows.
    """
    check_rows(asked.rows["forget"], asked.rows["retain"])
    _documents(asked)


def measure(target: Target, asked: Asked) -> Measured:
    """Generate for every row, attack the documents, and ask MMLU."""
    check(asked)
    labelled = [(split, row) for split, rows in asked.rows.items() for row in rows]
    reader = _Reader(target)
    predictions = reader.predictions([(split, as_asked(row)) for split, row in labelled])
    form, in_form = reader.in_form(labelled, predictions)
    limit = asked.options.get("mmlu_limit")
    mia = reader.membership(_documents(asked))
    mmlu = reader.harness(limit) if asked.options.get("mmlu_harness") else reader.mmlu(asked.others.get("mmlu"), limit)
    found = {"mia": mia, "mmlu": mmlu}
    return Measured(
        predictions,
        in_form,
        form,
        {name: scores for name, scores in found.items() if not isinstance(scores, str)},
        {name: reason for name, reason in found.items() if isinstance(reason, str)},
    )


@dataclass(frozen=True, slots=True)
class _Documents:
    members: Sequence[str]
    nonmembers: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Reader:
    """The model that is asked; a score that the model's own numbers do not allow is the reason as text."""

    target: Target

    def predictions(self, labelled: Sequence[tuple[str, Row]]) -> tuple[Prediction, ...]:
        """Return what the model says to each row."""
        whole = self.target.whole_generations
        generations = generate(
            self.target.model,
            self.target.tokenizer,
            [row.prompt for _, row in labelled],
            to_match=[row.answer if row.kind == "question" and not whole else None for _, row in labelled],
            uncut_tokens=uncut_tokens([split for split, _ in labelled]),
            guesses=[row.answer for _, row in labelled],
            max_new_tokens=self.target.max_new_tokens,
            batch_size=self.target.batch_size,
            exact=self.target.exact,
            names=[f"{split} row {row.id}" for split, row in labelled],
            progress=self.target.stage("generation"),
        )
        return tuple(
            predict(row, split, generation.text, is_cut=generation.is_cut, has_ended=generation.has_ended)
            for (split, row), generation in zip(labelled, generations, strict=True)
        )

    def in_form(
        self, labelled: Sequence[tuple[str, Row]], official: Sequence[Prediction]
    ) -> tuple[Form | None, tuple[Prediction, ...]]:
        """Return the form of the rows, and the predictions in it where they are not the official ones."""
        target = self.target
        if target.form is None:
            return None, ()
        asking = AskedForm(target.form.template, target.form.date, target.form.source)
        form, known = resolve_form(asking, target.model, target.tokenizer, [row for _, row in labelled])
        found = form_predictions(
            target.model,
            target.tokenizer,
            labelled,
            official,
            form,
            max_new_tokens=target.max_new_tokens,
            batch_size=target.batch_size,
            exact=target.exact,
            progress=target.stage("generation in form"),
        )
        values = {name: {"loss": one.loss, "recall": one.recall} for name, one in known.items()}
        return Form(form.template, form.date, form.source, differs=found is not None, known=values), found or ()

    def membership(self, documents: _Documents | None) -> MembershipScores | str:
        """Return the scores of the membership attack, or why there are none."""
        if documents is None:
            return "no member and non-member documents given"
        try:
            losses = document_losses(
                self.target.model,
                self.target.tokenizer,
                [*documents.members, *documents.nonmembers],
                batch_size=self.target.batch_size,
                exact=self.target.exact,
                progress=self.target.stage("membership"),
            )
            return membership_scores(losses[: len(documents.members)], losses[len(documents.members) :])
        except EvaluationError as error:
            return str(error)

    def mmlu(self, subjects: Sequence[Subject] | None, limit_per_subject: int | None) -> MmluScores | str:
        """Return the accuracies on MMLU, or why there are none."""
        if subjects is None:
            return "no MMLU folder given"
        try:
            return score_mmlu(
                self.target.model,
                self.target.tokenizer,
                subjects,
                limit_per_subject=limit_per_subject,
                batch_size=self.target.batch_size,
                exact=self.target.exact,
                progress=self.target.stage("mmlu"),
            )
        except EvaluationError as error:
            return str(error)

    def harness(self, limit_per_subject: int | None) -> MmluScores:
        """Return the accuracies that lm-evaluation-harness finds."""
        return mmlu_with_harness(
            self.target.model,
            self.target.tokenizer,
            batch_size=self.target.batch_size,
            limit_per_subject=limit_per_subject,
        )


def _documents(asked: Asked) -> _Documents | None:
    members, nonmembers = asked.others.get("members"), asked.others.get("nonmembers")
    if members is None and nonmembers is None:
        return None
    if members is None or nonmembers is None:
        given, absent = ("members", "non-members") if nonmembers is None else ("non-members", "members")
        raise EvaluationError(
            f"the membership attack needs both sets of documents: {given} are given, {absent} are not"
        )
    if min(len(members), len(nonmembers)) < 2:
        raise EvaluationError(
            f"the membership attack needs at least two documents of each kind, got {len(members)} members and "
            f"{len(nonmembers)} non-members"
        )
    check_members(members, asked.rows["retain"])
    return _Documents(members, nonmembers)
