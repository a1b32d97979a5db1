"""Records that let a stopped population continue with the same bytes: which runs trained together, from which steps.

A product of many rows rounds otherwise than one of few, so a run's bits depend on who shares its passes. Runs go
on in the same cohorts, therefore, and all of a cohort from after the same step. population.json in each run's folder
says which cohorts there are, from before the first step until the run is done; of a run that met a loss which is
not finite, or that was given up, it says when that was, since those that go on later go on without it.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from letheon.errors import DivergenceError, GivenUpError
from letheon.storage.run_folder import POPULATION_FILE, write_json_entry
from letheon.training.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Diverged:
    """Where a run ended that met a loss or gradient that is not finite, or was given up."""

    num_passes: int
    """Steps of the others that it took part in."""
    log_events: int
    """Events in its log, resumptions left out."""
    reason: str
    is_given_up: bool = False
    """Whether it met no such thing, but was ended because others do better."""

    @property
    def error(self) -> DivergenceError | GivenUpError:
        """What it ended with."""
        return GivenUpError(self.reason) if self.is_given_up else DivergenceError(self.reason)


@dataclass(frozen=True, slots=True)
class Cohort:
    """Runs that are trained at once."""

    runs: tuple[int, ...]
    goes_on: bool = False
    """Whether they have been together before, so that they go on from one step."""


def is_in_population(folder: Path) -> bool:
    """Return whether the run in `folder` is one of a population that is not done."""
    return bool(_cohorts_in(folder))


def divergence_of(folder: Path) -> Diverged | None:
    """Return where the run in `folder` diverged in a population, None if it did not."""
    try:
        return Diverged(**_read(folder)["diverged"])
    except (KeyError, TypeError):
        return None


def write_cohorts(folders: Sequence[Path], cohorts: Sequence[Cohort]) -> None:
    """Write into each run's folder which cohorts there are; where runs diverged is kept where they go on.

    Raises:
        OutputError: it cannot be written.
    """
    for folder in folders:
        named = [[os.path.relpath(folders[m].resolve(), folder.resolve()) for m in cohort.runs] for cohort in cohorts]
        diverged = _read(folder).get("diverged")
        write_json_entry(folder, POPULATION_FILE, {"parts": named, **({"diverged": diverged} if diverged else {})})


def write_divergence(folder: Path, diverged: Diverged | None) -> None:
    """Write down where a run diverged, or with None that it has not.

    Raises:
        OutputError: it cannot be written.
    """
    before = _read(folder)
    if diverged is not None or "diverged" in before:
        rest = {name: value for name, value in before.items() if name != "diverged"}
        write_json_entry(folder, POPULATION_FILE, {**rest, **({"diverged": asdict(diverged)} if diverged else {})})


def leave_population(folder: Path) -> None:
    """Remove what is written of a population in a run's folder."""
    (folder / POPULATION_FILE).unlink(missing_ok=True)


def recorded_cohorts(folders: Sequence[Path]) -> list[Cohort]:
    """Return the cohorts that these runs were in, each in its order, by the first; those without are left out."""
    paths = [folder.resolve() for folder in folders]
    index = {path: m for m, path in enumerate(paths)}
    cohorts: dict[Path, tuple[Path, ...]] = {}
    found = [_cohorts_in(folder) for folder in folders]
    # A run's own word comes first: a folder may have been made anew since another wrote of it.
    for path, own in zip(paths, found, strict=True):
        cohorts.update((path, cohort) for cohort in own if path in cohort)
    for cohort in (cohort for own in found for cohort in own):
        for path in cohort:
            if path in index:
                cohorts.setdefault(path, cohort)
    kept = dict.fromkeys(cohorts[path] for path in paths if path in cohorts)
    return [
        Cohort(tuple(index[path] for path in cohort if cohorts.get(path) == cohort), goes_on=True) for cohort in kept
    ]


def common_step(
    find: Callable[[int, int | None], Checkpoint | None],
    *,
    is_over: Callable[[int, Checkpoint], bool],
    diverged: Mapping[int, Diverged],
    num_runs: int,
) -> tuple[list[Checkpoint | None], dict[int, Diverged]]:
    """Return where each run goes on so that all that go on stand after the same step; None for the beginning.

    `find` gives the newest checkpoint of a run that is of a step not after the second argument. A run that was
    over before that step stays where it ended. One that `diverged` before it has no part in what follows: these come
    second, and None stands for them in the first.
    """
    limit: int | None = None
    while True:
        out = {m: end for m, end in diverged.items() if limit is None or end.num_passes <= limit}
        found = [None if m in out else find(m, limit) for m in range(num_runs)]
        steps = {m: one.position.step if one else 0 for m, one in enumerate(found) if m not in out}
        going = [step for m, step in steps.items() if (one := found[m]) is None or not is_over(m, one)]
        if not going:
            return found, out
        last = min(going)
        if max(steps.values()) <= last and all(end.num_passes <= last for end in out.values()):
            return found, out
        limit = last


def _cohorts_in(folder: Path) -> list[tuple[Path, ...]]:
    cohorts = _read(folder).get("parts")
    if not isinstance(cohorts, list) or not all(isinstance(cohort, list) for cohort in cohorts):
        return []
    return [tuple((folder / str(name)).resolve() for name in cohort) for cohort in cohorts]


def _read(folder: Path) -> dict[str, Any]:
    """Return what is written in a run's folder; {} if nothing, or nothing that can be read."""
    try:
        value = json.loads((folder / POPULATION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
