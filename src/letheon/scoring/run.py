"""Scoring a run's model before and after, with the model that is in memory when the run is over.

Both evaluations are what `letheon evaluate` finds of the same checkpoints: before, the adapter is off; after, the
weights in memory are those that were saved. Only where the weights themselves were trained is a model loaded again,
when the optimiser's moments, which are larger, are gone.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from letheon.errors import EvaluationError, LetheonError
from letheon.evaluation.in_form import AskedForm
from letheon.evaluation.registry import read_results
from letheon.evaluation.rescoring import write_evaluation
from letheon.model.adapters import LoraAdapter
from letheon.model.fingerprint import fingerprint, fingerprint_as_saved
from letheon.model.loading import LoadedModel, load_model
from letheon.model.quantised_layers import quantised_layers
from letheon.model.taking import computing_as_saved, take_saved_weights
from letheon.model.widening import product_dtype, widening_of
from letheon.processes import from_first, on_first
from letheon.progress import Progressed
from letheon.scores.fluency import LOSS_BEFORE, Fluencies
from letheon.scores.results import Evaluation, Results
from letheon.scoring.cache import keep_scores, key_of, load_scores
from letheon.scoring.inputs import EvaluatedInputs, read_evaluated
from letheon.settings import EvaluateSettings, RowSettings, UnlearnSettings
from letheon.settings.suites import ASKED_FORMS, brings_rows
from letheon.signals import finishing
from letheon.storage.cache import default_cache_dir, scores_path
from letheon.storage.files import check_output_folder, open_output_folder
from letheon.storage.outside import note_cached_scores
from letheon.storage.run_folder import EVALUATIONS_FOLDER, MODEL_FOLDER, RESULTS_FILE
from letheon.training.tracking import Observer
from letheon.unlearning.record import RunReport
from letheon.unlearning.run import Written

Side = Literal["before", "after"]

TIME_IS_UP = (
    "the time limit left no time for it; score it by the same command with --resume and a longer --time-limit-s"
)
_ELSEWHERE = "choose another --out"
HOW_TO_SCORE = "the run is complete; the same command with --resume scores it"
"""What to do where scoring failed."""
WAS_ENDED = "a signal ended the run before its last step"

_SHARED = (
    *RowSettings.model_fields,
    *("members", "nonmembers", "mmlu", "mmlu_limit", "never", "never_results", "parity"),
)
"""Settings of a run that its evaluations take over."""


@dataclass(slots=True)
class RunScoring:
    """The scoring of one run: what is asked of its model, and what came of it."""

    settings: UnlearnSettings
    observer: Observer
    results: dict[Side, Results] = field(default_factory=dict)
    unscored: str | None = None
    """Why a side has no scores."""
    has_failed: bool = False
    """Whether that is because of an error."""

    def check(self) -> None:
        """Check what can be checked before a run.

        Raises:
            LetheonError: documents or questions cannot be read, or do not go with the rows.
        """
        check_output_folder(self.settings.out, what="a folder for the run", advice=_ELSEWHERE)
        read_evaluated(evaluate_settings(self.settings, "before"))

    def score(self, written: Written) -> None:
        """Score the model before and after, each unless that has been done, into the run's evaluation/.

        An error is kept in `unscored`: the run itself is complete.
        """
        if written.report.exit_code or written.is_time_up:
            self.unscored = WAS_ENDED if written.report.exit_code else TIME_IS_UP
            return
        try:
            with written.adapted.off():
                self.results["before"] = self._before(written)
                self.results["after"] = self._after(written)
        except LetheonError as error:
            self.unscored, self.has_failed = f"{error}; {HOW_TO_SCORE}", True

    def _before(self, written: Written) -> Results:
        settings, inputs, form = self._asked("before", written)
        loaded, weights_sha256 = (written.loaded if written.adapted.is_switchable else None), written.weights_sha256
        if not _keeps_dtypes(written):
            loaded = self._load(settings, written)
            weights_sha256 = fingerprint(loaded.model)
        provenance = inputs.describe(weights_sha256=weights_sha256, precision=written.precision)
        known = from_first(lambda: _scores_there(settings.out, form, provenance))
        if known is not None:
            return known
        cache_dir = self.settings.cache_dir or default_cache_dir()
        cached = scores_path(cache_dir, key_of(settings, form, provenance, computed=_computed(written.loaded)))
        on_first(lambda: note_cached_scores(self.settings.out, cached))
        evaluation = from_first(lambda: load_scores(cached, model=settings.model, form=form, provenance=provenance))
        if evaluation is None:
            loaded = loaded or self._load(settings, written)
            evaluation = inputs.score(loaded, provenance=provenance, progress=self._progress("before"))
            made = evaluation
            on_first(lambda: keep_scores(made, cached))
        else:
            self.observer.note(f"scores before unlearning: taken from {cached}, where an earlier run left them")
        return _written_to(settings.out, evaluation)

    def _after(self, written: Written) -> Results:
        settings, inputs, form = self._asked("after", written)
        with ExitStack() as stack:
            loaded, weights_sha256 = self._saved(settings, written, stack)
            provenance = inputs.describe(weights_sha256=weights_sha256, precision=written.precision)
            known = from_first(lambda: _scores_there(settings.out, form, provenance))
            if known is not None:
                return known
            evaluation = inputs.score(loaded, provenance=provenance, progress=self._progress("after"))
        return _written_to(settings.out, _with_losses_before(evaluation, written.report.fluency))

    def _saved(self, settings: EvaluateSettings, written: Written, stack: ExitStack) -> tuple[LoadedModel, str]:
        """The model that computes as the saved one, while `stack` is open, and the fingerprint of its weights."""
        adapted = written.adapted
        if isinstance(adapted, LoraAdapter) and quantised_layers(adapted.model):
            folder, trusts = Path(settings.model), settings.trust_remote_code
            weights_sha256 = fingerprint_as_saved(
                adapted.model, adapted.merged_state(), folder, trust_remote_code=trusts
            )
            stack.enter_context(computing_as_saved(adapted))
            return written.loaded, weights_sha256
        if _keeps_dtypes(written):
            take_saved_weights(adapted)
            loaded = written.loaded
        else:
            loaded = self._load(settings, written)
        return loaded, fingerprint(loaded.model)

    def _asked(self, side: Side, written: Written) -> tuple[EvaluateSettings, EvaluatedInputs, AskedForm]:
        """The settings and inputs of an evaluation, which asks in the form of the run."""
        settings, of_run = evaluate_settings(self.settings, side), written.report.provenance["form"]
        form = AskedForm(of_run["template"], of_run["date"], f"the run in {self.settings.out.absolute()}")
        return settings, read_evaluated(settings).in_form(form), form

    def _load(self, settings: EvaluateSettings, written: Written) -> LoadedModel:
        self.observer.stage("loading the model", 0, 0)
        return load_model(
            settings.model,
            dtype=settings.dtype,
            tokenizer=written.loaded.tokenizer,
            device=settings.device,
            trust_remote_code=settings.trust_remote_code,
            shard=self.settings.shard,
            note=self.observer.note,
        )

    def _progress(self, side: Side) -> Progressed:
        return lambda stage, done, total: self.observer.stage(f"scoring {side}: {stage}", done, total)


@dataclass(frozen=True, slots=True)
class UnlearnReport(RunReport):
    """What a run left behind, how it went, and what it is worth."""

    before: Results | None = None
    """Scores of the model before unlearning."""
    after: Results | None = None
    page: Path | None = None
    """report.html, of a run that was to be scored."""
    unscored: str | None = None
    """Why scores that were to be there are not."""

    @classmethod
    def of(cls, report: RunReport, *, page: Path | None = None, scoring: RunScoring | None = None) -> Self:
        """Return the report of a run with its scores; a run that could not be scored has exit code 1."""
        found = {one.name: getattr(report, one.name) for one in fields(RunReport)}
        if scoring is None:
            return cls(**found)
        if scoring.has_failed:
            found["exit_code"] = found["exit_code"] or 1
        results = scoring.results
        return cls(
            **found, before=results.get("before"), after=results.get("after"), page=page, unscored=scoring.unscored
        )


def evaluate_settings(settings: UnlearnSettings, side: Side) -> EvaluateSettings:
    """Return the settings of the evaluation of a run's model before or after."""
    shared = {name: getattr(settings, name) for name in _SHARED}
    if brings_rows(settings.suite) and settings.template in ASKED_FORMS:
        shared["template"] = settings.template
    if side == "after":
        shared |= {"model": str(settings.out / MODEL_FOLDER), "tokenizer": None}
    return EvaluateSettings.of({**shared, "out": settings.out / EVALUATIONS_FOLDER / side})


def _scores_there(folder: Path, form: AskedForm, provenance: Mapping[str, Any]) -> Results | None:
    """The results in a folder if they are of the model, rows, documents and form in question."""
    if not (folder / RESULTS_FILE).is_file():
        return None
    try:
        found = read_results(folder / RESULTS_FILE)
    except EvaluationError:
        return None
    is_same_form = found.form is not None and (found.form.template, found.form.date) == (form.template, form.date)
    return found if is_same_form and found.provenance.get("read") == provenance["read"] else None


def _written_to(folder: Path, evaluation: Evaluation) -> Results:
    on_first(lambda: _write(folder, evaluation))
    return evaluation.results


def _write(folder: Path, evaluation: Evaluation) -> None:
    open_output_folder(folder, advice=_ELSEWHERE, private=True)
    with finishing():
        write_evaluation(evaluation, folder)


def _with_losses_before(evaluation: Evaluation, of_run: Fluencies) -> Evaluation:
    """Add what the answers that the run looked at cost the model before, which is no longer in memory."""
    found = {
        side: {**numbers, LOSS_BEFORE: of_run.get(side, {}).get(LOSS_BEFORE)}
        for side, numbers in evaluation.results.fluency.items()
    }
    return replace(evaluation, results=evaluation.results.with_fluency(found))


def _keeps_dtypes(written: Written) -> bool:
    """Whether the model lies in memory as it would if it were loaded; trained matrices of a widened one are float32."""
    return written.adapted.is_switchable or widening_of(written.adapted.model) is None


def _computed(loaded: LoadedModel) -> dict[str, str]:
    """In what the scores of a model are computed."""
    model = loaded.model
    return {"dtype": str(model.dtype), "products": str(product_dtype(model)), "device": model.device.type}
