"""Official scores of a run's states, each taken once for one way of scoring."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from letheon.data.forms import AUTO
from letheon.errors import OutputError
from letheon.evaluation.registry import read_results
from letheon.progress import Progressed
from letheon.report.files import read_mapping
from letheon.settings import EvaluateSettings, UnlearnSettings
from letheon.storage.files import made_folder, sweep
from letheon.storage.provenance import hash_file
from letheon.storage.run_folder import (
    EVALUATIONS_FOLDER,
    FORM_FILE,
    LOCKS_FOLDER,
    ORIGINALS_FOLDER,
    REQUEST_FILE,
    RESULTS_FILE,
    write_json_entry,
)
from letheon.storage.staged import finish_staged
from letheon.studies.planned_runs import Hashes, PlannedRun, identity_of
from letheon.studies.records import StateScores, scores_of_interim, state_scores
from letheon.studies.spec import StudySettings
from letheon.studies.states import RunState, checkpoint_of, drop_model, is_dropped, result_of, states_of


class Evaluate(Protocol):
    """Scores a checkpoint and leaves results.json in its `out`; `progress` hears how far it is."""

    def __call__(self, settings: EvaluateSettings, *, progress: Progressed | None = None) -> object:
        """Score it."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """How the states of a study's runs are scored."""

    study: StudySettings
    hashes: Hashes
    evaluate: Evaluate

    def score(self, run: PlannedRun, *, note: Callable[[str], None], progress: Progressed | None = None) -> None:
        """Score a finished run: its result and the epochs of the study, but for what has been scored so before."""
        finish_staged(run.folder, note=note)
        sweep(run.folder)
        states, _ = states_of(run.folder, epochs=self._epochs(run.settings))
        for state in states:
            if self.study.evaluate is not None and not self._is_scored(run, state):
                note(f"epoch {state.epoch:g}")
                self._score_state(run, state, progress)
        if not self.study.keep_models:
            drop_model(run.folder)

    def is_scored(self, run: PlannedRun) -> bool:
        """Whether all that the study wants of a finished run has been scored, and its model is gone if it is to go."""
        if not self.study.keep_models and not is_dropped(run.folder):
            return False
        if self.study.evaluate is None:
            return True
        states, _ = states_of(run.folder, epochs=self._epochs(run.settings))
        return all(self._is_scored(run, state) for state in states)

    def read(self, run: PlannedRun) -> tuple[tuple[StateScores, ...], tuple[str, ...]]:
        """Return the scores of a finished run that were taken in the study's way, and what is not to be had."""
        states, absent = states_of(run.folder, epochs=self._epochs(run.settings))
        scored = tuple(
            self._scores_of(run, state)
            for state in states
            if self.study.evaluate is None or self._is_scored(run, state)
        )
        notes = (f"ended before epoch {', '.join(f'{epoch:g}' for epoch in absent)}",) if absent else ()
        return scored, notes

    def score_original(self, run: UnlearnSettings, out: Path, *, progress: Progressed | None = None) -> StateScores:
        """Score the model that a run begins from, once for the study; wait for another process that is at it."""
        settings, signature = self._of_original(run, out)
        with FileLock(made_folder(out / LOCKS_FOLDER) / f"{settings.out.name}.lock"):
            if not _is_done(settings.out, signature):
                self.evaluate(settings, progress=progress)
                _sign(settings.out, signature)
        results = read_results(settings.out / RESULTS_FILE)
        return state_scores(results, epoch=0.0, is_result=False)

    def is_original_scored(self, run: UnlearnSettings, out: Path) -> bool:
        """Return whether the model that a run begins from has been scored."""
        settings, signature = self._of_original(run, out)
        return _is_done(settings.out, signature)

    def _of_original(self, run: UnlearnSettings, out: Path) -> tuple[EvaluateSettings, dict[str, Any]]:
        """How the model that a run begins from is scored, and what says of scores that they were taken so."""
        folder = out / ORIGINALS_FOLDER / self.hashes.of(run.model)[:12].replace("/", "-")
        settings = self.study.evaluation(run, model=run.model, out=folder)
        settings = settings.model_copy(update={"tokenizer": run.tokenizer, **self._form(run.template, run.date)})
        return settings, {"identity": identity_of(settings.model_copy(update={"model": "original"}), self.hashes)}

    def _epochs(self, run: UnlearnSettings) -> tuple[float, ...]:
        """Those of the study that the run was asked to keep, as `planned_run` did."""
        return tuple(epoch for epoch in self.study.epochs if epoch in (run.score_at or ()))

    def _settings(self, run: PlannedRun, state: RunState, *, model: str) -> EvaluateSettings:
        settings = self.study.evaluation(run.settings, model=model, out=_folder(run, state))
        if (str(settings.forget), str(settings.retain)) == (str(run.settings.forget), str(run.settings.retain)):
            return settings  # the evaluation asks the run's own rows in the run's form by itself
        form = read_mapping(run.folder / FORM_FILE)
        return settings.model_copy(update=self._form(str(form.get("template", AUTO)), form.get("date")))

    def _form(self, template: str, date: object) -> dict[str, Any]:
        """The form of a run as settings of an evaluation, unless the study names one or it is still to be found out."""
        named = self.study.evaluate or {}
        dated = {"date": date} if date is not None and "date" not in named else {}
        return {} if "template" in named else {**dated, **({} if template == AUTO else {"template": template})}

    def _signature(self, run: PlannedRun, state: RunState) -> dict[str, Any]:
        """What says of scores that they are of this state of this run, taken in the study's way."""
        result = result_of(run.folder).get("model_sha256") if state.is_result else None
        return {
            "identity": identity_of(self._settings(run, state, model="state"), self.hashes),
            "run": run.identity,
            "step": state.step,
            **({"model_sha256": result} if result else {}),
        }

    def _is_scored(self, run: PlannedRun, state: RunState) -> bool:
        return _is_done(_folder(run, state), self._signature(run, state))

    def _score_state(self, run: PlannedRun, state: RunState, progress: Progressed | None) -> None:
        with checkpoint_of(run.folder, state) as checkpoint:
            self.evaluate(self._settings(run, state, model=str(checkpoint)), progress=progress)
        _sign(_folder(run, state), self._signature(run, state))

    def _scores_of(self, run: PlannedRun, state: RunState) -> StateScores:
        interim = scores_of_interim(state.interim)
        if self.study.evaluate is None:
            return StateScores(state.epoch, state.is_result, interim)
        results = read_results(_folder(run, state) / RESULTS_FILE)
        return state_scores(results, epoch=state.epoch, is_result=state.is_result, interim=interim)


def _folder(run: PlannedRun, state: RunState) -> Path:
    return run.folder / EVALUATIONS_FOLDER / ("after" if state.is_result else f"epoch-{state.epoch:g}")


def _is_done(folder: Path, signature: Mapping[str, Any]) -> bool:
    """Whether a folder holds the scores that were signed so, as they were signed.

    Signatures of earlier versions hold the identity alone; what they lack is not compared.
    """
    path, results = folder / REQUEST_FILE, folder / RESULTS_FILE
    if not path.is_file() or not results.is_file():
        return False
    try:
        signed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read ({error}); remove {folder} to score this state again") from error
    wanted = {**signature, "results_sha256": hash_file(results)}
    if not isinstance(signed, dict) or signed.get("identity") != wanted["identity"]:
        return False
    return all(signed[name] == wanted.get(name) for name in signed)


def _sign(folder: Path, signature: Mapping[str, Any]) -> None:
    """Say last of all in what way the scores were taken, so that half of them are never taken for whole."""
    write_json_entry(folder, REQUEST_FILE, {**signature, "results_sha256": hash_file(folder / RESULTS_FILE)})
