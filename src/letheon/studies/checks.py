"""What would stop every run of a study, or every evaluation, said before a model is loaded."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from letheon.errors import DataError, LetheonError, SettingsError
from letheon.model.checkpoint_files import check_checkpoint
from letheon.model.loading import load_config
from letheon.model.quantised import check_quantisation
from letheon.settings import EvaluateSettings, UnlearnSettings
from letheon.studies.planned_runs import PlannedRun
from letheon.studies.spec import StudySettings
from letheon.studies.states import is_finished

_Checked = TypeVar("_Checked", UnlearnSettings, EvaluateSettings)

_ALIKE = ("out", "seed")
"""Settings that no run or evaluation is refused for."""


@dataclass(frozen=True, slots=True)
class Checks:
    """What is checked of the two jobs that a study is made of before weights are loaded; either raises LetheonError."""

    unlearn: Callable[[UnlearnSettings], object]
    evaluate: Callable[[EvaluateSettings], object]


def check_study(
    study: StudySettings, runs: Sequence[PlannedRun], checks: Checks, *, planned: Sequence[PlannedRun] | None = None
) -> None:
    """Say what would stop every run or every evaluation before any is begun.

    What stops some of them and not others is found out, and recorded, as these are run. `planned` are all runs of the
    study where `runs` are some of them.

    Raises:
        LetheonError: as `letheon unlearn` or `letheon evaluate` would raise of the first run.
    """
    if any(run.settings.shard for run in runs):
        raise SettingsError(
            "shard: the runs of a study have a process each, with all weights; leave it out, or start single runs by "
            "torchrun -m letheon unlearn"
        )
    loaded = {(one.model, one.trust_remote_code, one.quantise, one.adapt) for one in (run.settings for run in runs)}
    for model, trust, quantise, adapt in loaded:
        check_checkpoint(model)
        config = load_config(model, trust_remote_code=trust)
        check_quantisation(config, source=model, quantise=quantise, adapt=adapt)
    for run in runs:
        evaluation = _evaluation(study, run)
        sources = {"forget": run.settings.forget, "retain": run.settings.retain}
        if study.evaluate is not None:
            sources |= {"evaluate.forget": evaluation.forget, "evaluate.retain": evaluation.retain}
            others = ("members", "nonmembers", "mmlu")
            sources |= {f"evaluate.{name}": str(found) for name in others if (found := getattr(evaluation, name))}
        for name, source in sources.items():
            if not source.startswith("hub:") and not Path(source).exists():
                raise DataError(f"{name}: {source}: no such file or folder; give the right path (--set {name}=PATH)")
    if isinstance(study.compare, dict) and not study.search:
        wanted = study.compare
        if not any(all(m.configuration.values.get(k) == v for k, v in wanted.items()) for m in planned or runs):
            raise SettingsError(f"compare: no configuration of the study has {wanted}; name one that is there")
    _check_some([run.settings for run in runs if not is_finished(run.folder)], checks.unlearn)
    if study.evaluate is not None:
        _check_some([_evaluation(study, run) for run in runs], checks.evaluate)


def _evaluation(study: StudySettings, run: PlannedRun) -> EvaluateSettings:
    """How the run's model is scored, told of the model that it begins with."""
    found = study.evaluation(run.settings, model=run.settings.model, out=run.folder)
    return found if found.tokenizer is not None else found.model_copy(update={"tokenizer": run.settings.tokenizer})


def _check_some(found: Sequence[_Checked], check: Callable[[_Checked], object]) -> None:
    """Check settings up to the first that pass.

    Raises:
        LetheonError: none of them do; what is wrong with the first.
    """
    refusals: dict[str, LetheonError] = {}
    for settings in found:
        key = json.dumps({name: value for name, value in settings.plain().items() if name not in _ALIKE}, default=str)
        if key in refusals:
            continue
        try:
            check(settings)
        except LetheonError as error:
            refusals[key] = error
        else:
            return
    if refusals:
        raise next(iter(refusals.values()))
