"""What a study found, configuration by configuration: means over seeds, comparisons, what each setting moves."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from letheon.scores.score import Score
from letheon.studies.forgetting import Forgetting, forgetting_of
from letheon.studies.grid import Role
from letheon.studies.known import aims_of, known_scores
from letheon.studies.records import RunRecord, StateScores, StudyRecord
from letheon.studies.shown_scores import forgotten_score
from letheon.studies.statistics import (
    Paired,
    bootstrap_interval,
    deviation,
    holm,
    paired,
    resampled_means,
)

ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Summary:
    """One score of a row over its seeds."""

    num_seeds: int
    mean: float
    deviation: float | None
    """Of the kind that the study names; None for too few seeds."""
    low: float | None
    """The bootstrap interval of the mean; None for one seed."""
    high: float | None
    is_best: bool = False
    """Whether, of the rows that forgot, none has a mean that is better by more than the seeds explain."""


@dataclass(frozen=True, slots=True)
class ConfigurationRow:
    """A configuration, at one epoch where the study scores several."""

    label: str
    role: Role
    values: Mapping[str, Any]
    epoch: float | None
    """None for the state that each run kept."""
    num_runs: int
    """Runs that there should be; those that failed or are not done are missing from the scores."""
    scores: Mapping[str, Mapping[int, float]]
    """By score, then by seed."""
    summaries: Mapping[str, Summary]
    forgetting: Forgetting
    is_unknown: bool
    """Whether a run's model did not know the rows before its first step."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much one row's score exceeds another's."""

    score: str
    first: str
    second: str
    found: Paired
    p_holm: float
    """Corrected for all comparisons of this score."""
    is_of_forgetting: bool
    """Whether the row with the better score forgot."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How far a setting moves forgetting and retention."""

    setting: str
    num_pairs: int
    """Pairs of configurations that differ in this setting alone."""
    forgotten: float
    """Mean over the pairs of the distance of their means."""
    retained: float
    excess: tuple[float, float] | None
    """The 95% bootstrap interval, over seeds, of retained - forgotten; None for fewer than two seeds."""


def rows_of(record: StudyRecord, scores: Sequence[str], *, by_epoch: bool = True) -> list[ConfigurationRow]:
    """Sum a study up: a row a configuration in the study's order, of a search the best first, baselines last.

    With `by_epoch`, and where the study scores several epochs, there is one for each of these, and one for the states
    that the runs kept where these are of another epoch. Best marks of a score go over all rows that forgot; of a search
    these come first.
    """
    epochs: Sequence[float | None] = record.study.epochs if by_epoch and record.study.epochs else (None,)
    grouped: dict[tuple[Role, str], list[RunRecord]] = {}
    for run in record.runs:
        grouped.setdefault((run.role, run.configuration), []).append(run)
    ordered = sorted(grouped.items(), key=lambda item: item[0][0] == "baseline")
    forgotten = forgotten_score(record)
    rows = [row for _, runs in ordered for row in _rows_of_one(runs, epochs, scores, record, forgotten)]
    if record.study.search:
        rows = sorted(
            rows, key=lambda row: (row.role == "baseline", not row.forgetting.is_forgotten, -_merit(row, record))
        )
    known = known_scores(record.study)
    return _marked(rows, [known[name] for name in scores])


def comparisons_of(record: StudyRecord, rows: Sequence[ConfigurationRow], score: str) -> list[Comparison]:
    """Compare rows in one score over the seeds that they share, as the study's `compare` says.

    "best" sets the row with the best mean, of those that forgot if any did, against each other one, "all" each
    against each of the same epoch, settings the rows of these settings against the others of the same epoch. A baseline
    of another epoch meets them as it is. Rows without two seeds in common are left out.
    """
    known_score = known_scores(record.study)[score]
    pairs = _pairs(record, [row for row in rows if row.scores.get(score)], known_score)
    found = [(a, b, paired(a.scores[score], b.scores[score])) for a, b in pairs]
    known = [(a, b, pair) for a, b, pair in found if pair is not None]
    corrected = holm([pair.p for _, _, pair in known])
    return [
        Comparison(score, name_of(a), name_of(b), pair, p, _better(a, b, known_score).forgetting.is_forgotten)
        for (a, b, pair), p in zip(known, corrected, strict=True)
    ]


def sensitivities(rows: Sequence[ConfigurationRow], trade_off: tuple[str, str]) -> list[Sensitivity]:
    """Return what each setting moves, judged by the pairs of rows that differ in nothing else.

    Only the study's own configurations count, over the seeds that all of them have. A setting that never changes alone,
    as in a random search, is left out.
    """
    own = [row for row in rows if row.role == "study" and all(row.scores.get(name) for name in trade_off)]
    if not own:
        return []
    seeds = sorted(set.intersection(*(set(row.scores[name]) for row in own for name in trade_off)))
    if not seeds:
        return []
    values = [np.array([[row.scores[name][seed] for seed in seeds] for row in own]) for name in trade_off]
    means = [resampled_means(v) if len(seeds) > 1 else v for v in values]
    found = []
    for setting in dict.fromkeys(name for row in own for name in row.values):
        pairs = _differing_in(own, setting)
        if pairs:
            moves = [float(np.mean([abs(v[a].mean() - v[b].mean()) for a, b in pairs])) for v in values]
            drawn = [np.mean([np.abs(m[a] - m[b]) for a, b in pairs], axis=0) for m in means]
            excess = np.quantile(drawn[1] - drawn[0], (0.025, 0.975)) if len(seeds) > 1 else None
            interval = None if excess is None else (float(excess[0]), float(excess[1]))
            found.append(Sensitivity(setting, len(pairs), moves[0], moves[1], interval))
    return found


def seed_moves(rows: Sequence[ConfigurationRow], score: str) -> float | None:
    """Return how far apart the means of two equal configurations lie by their seeds alone, on average.

    With a standard deviation s over seeds (pooled over the configurations) and n seeds each, the difference of two
    means is normal with deviation s sqrt(2 / n), so that its size is 2 s / sqrt(pi n) on average. None where no
    configuration has two seeds.
    """
    found = [list(row.scores[score].values()) for row in rows if row.role == "study" and len(row.scores[score]) > 1]
    if not found:
        return None
    freedom = sum(len(values) - 1 for values in found)
    pooled = sum(float(np.var(values, ddof=1)) * (len(values) - 1) for values in found) / freedom
    return 2 * math.sqrt(pooled / (math.pi * fmean(len(values) for values in found)))


def name_of(row: ConfigurationRow) -> str:
    """Return a row's name: its configuration, and its epoch where there are several."""
    return row.label if row.epoch is None else f"{row.label}, epoch {row.epoch:g}"


def merits(row: ConfigurationRow, score: Score) -> dict[int, float]:
    """Return a score of a row by seed, such that higher is better."""
    return {seed: score.merit(value) for seed, value in row.scores.get(score.name, {}).items()}


def _rows_of_one(
    runs: Sequence[RunRecord],
    epochs: Sequence[float | None],
    scores: Sequence[str],
    record: StudyRecord,
    forgotten: str,
) -> list[ConfigurationRow]:
    rows: list[ConfigurationRow] = []
    if any(run.result is not None and _epoch_of(run.result, epochs) is None for run in runs):
        epochs = [*epochs, None]
    for epoch in dict.fromkeys(epochs):
        states = [(run, state) for run in runs if (state := _state_at(run, epoch)) is not None]
        by_score = {name: {r.seed: s.scores[name] for r, s in states if name in s.scores} for name in scores}
        row = ConfigurationRow(
            runs[0].configuration,
            runs[0].role,
            runs[0].values,
            epoch,
            len(runs),
            by_score,
            _summaries(by_score, record),
            forgetting_of(states, record.original, score=known_scores(record.study)[forgotten]),
            is_unknown=any(run.is_unknown for run in runs),
        )
        if any(by_score.values()) or epoch is None or (epoch == epochs[-1] and not rows):
            rows.append(row)
    return rows


def _merit(row: ConfigurationRow, record: StudyRecord) -> float:
    found = merits(row, known_scores(record.study)[aims_of(record.study)[0]])
    return fmean(found.values()) if found else -math.inf


def _state_at(run: RunRecord, epoch: float | None) -> StateScores | None:
    if epoch is None:
        return run.result
    near = [state for state in run.states if _is_at(state, epoch)]
    return min(near, key=lambda state: abs(state.epoch - epoch), default=None)


def _epoch_of(state: StateScores, epochs: Sequence[float | None]) -> float | None:
    """Return the epoch, of these, that a state is of."""
    return next((epoch for epoch in epochs if epoch is not None and _is_at(state, epoch)), None)


def _is_at(state: StateScores, epoch: float) -> bool:
    """Scored epochs fall on whole steps, which for a broken number of epochs lie a little off."""
    return abs(state.epoch - epoch) < 0.05


def _summaries(by_score: Mapping[str, Mapping[int, float]], record: StudyRecord) -> dict[str, Summary]:
    found = {}
    for name, by_seed in by_score.items():
        values = list(by_seed.values())
        if values:
            low, high = bootstrap_interval(values) or (None, None)
            spread = deviation(values, record.study.deviation) if len(values) > 1 else None
            found[name] = Summary(len(values), fmean(values), spread, low, high)
    return found


def _marked(rows: Sequence[ConfigurationRow], scores: Sequence[Score]) -> list[ConfigurationRow]:
    best = {score.name: _best(rows, score) for score in scores}
    return [
        replace(
            row,
            summaries={name: replace(summary, is_best=index in best[name]) for name, summary in row.summaries.items()},
        )
        for index, row in enumerate(rows)
    ]


def _best(rows: Sequence[ConfigurationRow], score: Score) -> set[int]:
    """Which rows are best or tied with the best: the interval of their difference from it, at a level that holds for
    all rows together (Bonferroni), reaches 0.

    Only rows that forgot are looked at. None is best where no row has two seeds, since nothing can be told apart then,
    nor where all rows have one score.
    """
    scored = [index for index, row in enumerate(rows) if score.name in row.summaries]
    if not any(rows[index].summaries[score.name].num_seeds > 1 for index in scored) or _are_equal(
        rows, scored, score.name
    ):
        return set()
    scored = [index for index in scored if rows[index].forgetting.is_forgotten]
    if not scored or (len(scored) > 1 and _are_equal(rows, scored, score.name)):
        return set()
    by_seed = {index: merits(rows[index], score) for index in scored}
    top = max(scored, key=lambda index: fmean(by_seed[index].values()))
    level = 1 - ALPHA / max(len(scored) - 1, 1)
    tied = {top}
    for index in scored:
        found = paired(by_seed[top], by_seed[index], level=level)
        if found is None or found.low <= 0:
            tied.add(index)
    return tied


def _are_equal(rows: Sequence[ConfigurationRow], chosen: Sequence[int], score: str) -> bool:
    # Rounded, since equal scores in another order of seeds add up to means that differ in the last digits.
    return len({round(rows[index].summaries[score].mean, 12) for index in chosen}) < 2


def _better(first: ConfigurationRow, second: ConfigurationRow, score: Score) -> ConfigurationRow:
    """The row with the better mean over the seeds that both have."""
    ours, theirs = merits(first, score), merits(second, score)
    difference = fmean(ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys())
    return first if difference > 0 else second


def _pairs(
    record: StudyRecord, rows: Sequence[ConfigurationRow], score: Score
) -> list[tuple[ConfigurationRow, ConfigurationRow]]:
    wanted = record.study.compare
    if wanted == "all":
        return [(a, b) for a, b in itertools.combinations(rows, 2) if _meet(a, b)]
    if isinstance(wanted, str):
        chosen = max(
            rows, key=lambda row: (row.forgetting.is_forgotten, fmean(merits(row, score).values())), default=None
        )
        return [] if chosen is None else [(chosen, row) for row in rows if row is not chosen]
    fitting = [row for row in rows if all(row.values.get(name) == value for name, value in wanted.items())]
    # Of several that fit, the one that these settings name in full.
    label = next((row.label for row in fitting if row.values == wanted), fitting[-1].label if fitting else None)
    own, others = ([row for row in rows if (row.label == label) == is_own] for is_own in (True, False))
    return [(one, other) for one in own for other in others if _meet(one, other)]


def _meet(first: ConfigurationRow, second: ConfigurationRow) -> bool:
    return first.epoch == second.epoch or "baseline" in (first.role, second.role)


def _differing_in(rows: Sequence[ConfigurationRow], setting: str) -> list[tuple[int, int]]:
    def others(row: ConfigurationRow) -> dict[str, Any]:
        return {name: value for name, value in row.values.items() if name != setting}

    return [
        (a, b)
        for a, b in itertools.combinations(range(len(rows)), 2)
        if others(rows[a]) == others(rows[b]) and rows[a].values.get(setting) != rows[b].values.get(setting)
    ]
