"""Which configurations of a study are hopeless while their runs are trained together: Optuna's median pruner says."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from statistics import fmean, median

from letheon.errors import MissingExtraError
from letheon.training.judge import StateScore
from letheon.unlearning.populations import GivesUp

try:
    import optuna
except ImportError as error:
    raise MissingExtraError("a study with a `pruner`", "search") from error

NUM_OTHERS = 3
"""Other configurations that must have been scored at an epoch before one is given up there."""


def median_judge(configurations: Mapping[Path, str]) -> GivesUp:
    """Return a judge of runs whose folders are mapped to their configurations; other runs are never given up.

    A configuration is given up, all its seeds at once, where the best of its interim scores so far, means over seeds,
    is below the median of the other configurations' scores at the same epoch. What is said depends on nothing but the
    scores, so that a study that was killed and goes on comes to the same.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def judge(scores: Mapping[Path, Sequence[StateScore]], asked: AbstractSet[Path]) -> dict[Path, str]:
        """Return which of the runs that are asked about are given up, and why."""
        means = {name: _means(name, configurations, scores) for name in dict.fromkeys(configurations.values())}
        given_up: dict[Path, str] = {}
        for folder in sorted(asked & configurations.keys()):
            name, epoch = configurations[folder], scores[folder][-1].epoch
            own = {at: mean for at, mean in means[name].items() if at <= epoch}
            others = [found for other, found in means.items() if other != name and epoch in found]
            if len(others) >= NUM_OTHERS and _is_pruned(own, others):
                given_up[folder] = (
                    f"given up after epoch {epoch:g}: its best interim score is {max(own.values()):.3f}, the median of "
                    f"{len(others)} other configurations there {median(found[epoch] for found in others):.3f}"
                )
        return given_up

    return judge


def _means(
    name: str, configurations: Mapping[Path, str], scores: Mapping[Path, Sequence[StateScore]]
) -> dict[float, float]:
    """The mean score of a configuration's runs by epoch."""
    found: dict[float, list[float]] = {}
    for folder, history in scores.items():
        if configurations.get(folder) == name:
            for score in history:
                found.setdefault(score.epoch, []).append(score.score)
    return {epoch: fmean(values) for epoch, values in found.items()}


def _is_pruned(own: Mapping[float, float], others: Sequence[Mapping[float, float]]) -> bool:
    # Optuna's median is over trials that are complete, so what others have come to counts as a trial of its own.
    epochs = sorted({epoch for found in (own, *others) for epoch in found})
    place = {epoch: number for number, epoch in enumerate(epochs)}
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=NUM_OTHERS))
    for found in others:
        values = {place[epoch]: value for epoch, value in found.items()}
        study.add_trial(optuna.trial.create_trial(value=max(values.values()), intermediate_values=values))
    trial = study.ask()
    for epoch, value in sorted(own.items()):
        trial.report(value, place[epoch])
    return trial.should_prune()
