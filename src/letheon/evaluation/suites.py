"""The LUME suite: everything the official evaluation measures, from a model to an `Evaluation`."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.data.forms import as_asked
from letheon.data.rows import Row
from letheon.errors import EvaluationError
from letheon.evaluation.batches import StepProgress
from letheon.evaluation.generation import generate
from letheon.evaluation.harness import mmlu_with_harness
from letheon.evaluation.in_form import AskedForm, form_predictions, resolve_form
from letheon.evaluation.membership import check_members, document_losses, membership_scores
from letheon.evaluation.mmlu import Subject, read_mmlu, score_mmlu
from letheon.evaluation.official import check_rows, complete_results, predict, score_in_form
from letheon.evaluation.rescoring import Evaluation, read_predictions, rescore, write_evaluation
from letheon.evaluation.results import FormScores, MembershipScores, MmluScores, Prediction, Results, SplitName
from letheon.model.widening import product_dtype

__all__ = ["Evaluation", "Progress", "evaluate_model", "read_predictions", "rescore", "write_evaluation"]

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); stages are "generation", "generation in form", "membership", "mmlu"."""

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
    start = time.monotonic()
    labelled = _labelled(forget, retain)
    documents = _documents(members, nonmembers, [row for split, row in labelled if split == "retain"])
    subjects = None if mmlu is None else read_mmlu(mmlu, limit_per_subject=mmlu_limit)
    reader = _Reader(model, tokenizer, batch_size, exact, progress)
    predictions = reader.predictions(
        [(split, as_asked(row)) for split, row in labelled], max_new_tokens, whole=whole_generations
    )
    scores, in_form = reader.in_form(labelled, predictions, form, max_new_tokens)
    mia = reader.membership(documents)
    accuracy = reader.harness(mmlu_limit) if mmlu_harness else reader.mmlu(subjects, mmlu_limit)
    settings = {
        "exact": exact,
        "whole_generations": whole_generations,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "dtype": str(model.dtype).removeprefix("torch."),
        "products": str(product_dtype(model)).removeprefix("torch."),
        "device": str(model.device),
    }
    results = complete_results(
        Results(suite="lume", model=model_name, settings=settings, provenance=dict(provenance or {}), form=scores),
        predictions,
        mia=mia if isinstance(mia, MembershipScores) else None,
        mmlu=accuracy if isinstance(accuracy, MmluScores) else None,
        missing={name: found for name, found in (("mia", mia), ("mmlu", accuracy)) if isinstance(found, str)},
    )
    return Evaluation(replace(results, duration_s=time.monotonic() - start), predictions, in_form)


@dataclass(frozen=True, slots=True)
class _Documents:
    members: Sequence[str]
    nonmembers: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Reader:
    """One model and how it is read; a score that the model's own numbers do not allow is the reason as text."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    exact: bool
    progress: Progress | None

    def predictions(
        self, labelled: Sequence[tuple[SplitName, Row]], max_new_tokens: int, *, whole: bool
    ) -> tuple[Prediction, ...]:
        """Return what the model says to each row."""
        generations = generate(
            self.model,
            self.tokenizer,
            [row.prompt for _, row in labelled],
            to_match=[row.answer if row.kind == "question" and not whole else None for _, row in labelled],
            guesses=[row.answer for _, row in labelled],
            max_new_tokens=max_new_tokens,
            batch_size=self.batch_size,
            exact=self.exact,
            names=[f"{split} row {row.id}" for split, row in labelled],
            progress=self._stage("generation"),
        )
        return tuple(
            predict(row, split, generation.text, is_cut=generation.is_cut)
            for (split, row), generation in zip(labelled, generations, strict=True)
        )

    def in_form(
        self,
        labelled: Sequence[tuple[SplitName, Row]],
        official: Sequence[Prediction],
        form: AskedForm | None,
        max_new_tokens: int,
    ) -> tuple[FormScores | None, tuple[Prediction, ...]]:
        """Return the scores of the rows in their form, and the predictions where they are not the official ones."""
        if form is None:
            return None, ()
        form, known = resolve_form(form, self.model, self.tokenizer, [row for _, row in labelled])
        found = form_predictions(
            self.model,
            self.tokenizer,
            labelled,
            official,
            form,
            max_new_tokens=max_new_tokens,
            batch_size=self.batch_size,
            exact=self.exact,
            progress=self._stage("generation in form"),
        )
        scores = score_in_form(
            official if found is None else found,
            template=form.template,
            date=form.date,
            source=form.source,
            differs=found is not None,
            known={name: {"loss": one.loss, "recall": one.recall} for name, one in known.items()},
        )
        return scores, found or ()

    def membership(self, documents: _Documents | None) -> MembershipScores | str:
        """Return the scores of the membership attack, or why there are none."""
        if documents is None:
            return "no member and non-member documents given"
        try:
            losses = document_losses(
                self.model,
                self.tokenizer,
                [*documents.members, *documents.nonmembers],
                batch_size=self.batch_size,
                exact=self.exact,
                progress=self._stage("membership"),
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
                self.model,
                self.tokenizer,
                subjects,
                limit_per_subject=limit_per_subject,
                batch_size=self.batch_size,
                exact=self.exact,
                progress=self._stage("mmlu"),
            )
        except EvaluationError as error:
            return str(error)

    def harness(self, limit_per_subject: int | None) -> MmluScores:
        """Return the accuracies that lm-evaluation-harness finds."""
        return mmlu_with_harness(
            self.model, self.tokenizer, batch_size=self.batch_size, limit_per_subject=limit_per_subject
        )

    def _stage(self, name: str) -> StepProgress | None:
        return None if self.progress is None else partial(self.progress, name)


def _labelled(forget: Iterable[Row], retain: Iterable[Row]) -> list[tuple[SplitName, Row]]:
    forget_rows, retain_rows = list(forget), list(retain)
    check_rows(forget_rows, retain_rows)
    labelled: list[tuple[SplitName, Row]] = [("forget", row) for row in forget_rows]
    return labelled + [("retain", row) for row in retain_rows]


def _documents(
    members: Sequence[str] | None, nonmembers: Sequence[str] | None, retain: Sequence[Row]
) -> _Documents | None:
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
    check_members(members, retain)
    return _Documents(members, nonmembers)
