"""What a run asks for: how many tokens in how many steps, and how many of them at once."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from letheon.data.packing import PASS_TOKENS, token_groups
from letheon.data.schedules import GeneralSchedule, Schedule, steps_from
from letheon.data.sequences import TokenSequence
from letheon.objective.methods import Method
from letheon.processes import shares_by_size
from letheon.settings import UnlearnSettings
from letheon.unlearning.scoring_steps import steps_to_score, total_steps

NUM_SAMPLED = 16
_GENERAL = 3


@dataclass(frozen=True, slots=True)
class Tokens:
    """How many tokens are read, and how many of them are answer tokens of each role."""

    read: int = 0
    forget: int = 0
    retain: int = 0
    other: int = 0
    """Of other answers to forget prompts."""
    general: int = 0
    squares: int = 0
    """Sum of the rows' squared lengths, to which attention is proportional."""

    @property
    def answers(self) -> int:
        """Answer tokens of all roles."""
        return self.forget + self.retain + self.other + self.general

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(
            self.read + other.read,
            self.forget + other.forget,
            self.retain + other.retain,
            self.other + other.other,
            self.general + other.general,
            self.squares + other.squares,
        )

    def times(self, factor: int) -> "Tokens":
        """Return all counts times `factor`."""
        parts = (self.read, self.forget, self.retain, self.other, self.general, self.squares)
        return Tokens(*(part * factor for part in parts))


@dataclass(frozen=True, slots=True)
class Data:
    """The sequences of a run: forget rows, retain rows, other answers, general rows; and the sequences of scorings."""

    trained: list[TokenSequence]
    num_forget: int
    num_retain: int
    scored: list[TokenSequence]
    """Everything that one scoring reads."""
    kept: tuple[TokenSequence, ...] = ()
    """Retain and general rows whose reference values are held in memory, for the KL of scorings."""
    choosing_tokens: int = 0
    """Tokens read to find out the template and whether rows are ended."""
    general: GeneralSchedule | None = None
    """Which general rows each step has."""

    @property
    def num_rows(self) -> int:
        """Rows that are trained on."""
        return self.num_forget + self.num_retain

    def count(self, indices: Iterable[int]) -> Tokens:
        """Return the tokens of some of the trained sequences."""
        read, squares, answers = 0, 0, [0, 0, 0, 0]
        for index in indices:
            sequence = self.trained[index]
            read += len(sequence.input_ids)
            squares += len(sequence.input_ids) ** 2
            answers[self.role(index)] += sequence.num_answer_tokens
        forget, retain, other, general = answers
        return Tokens(read, forget=forget, retain=retain, other=other, general=general, squares=squares)

    def role(self, index: int) -> int:
        """Return whether a trained sequence is to forget (0), to keep (1), another answer (2) or general (3)."""
        is_general = self.general is not None and index >= self.general.first
        return (index >= self.num_forget) + (index >= self.num_rows) + is_general


@dataclass(frozen=True, slots=True)
class Piece:
    """Sequences that are computed at once: forget rows, then retain rows, other answers and general rows."""

    sequences: tuple[TokenSequence, ...] = ()
    num_forget: int = 0
    num_retain: int = 0
    num_general: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of all its sequences."""
        return sum(len(sequence.input_ids) for sequence in self.sequences)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a run computes."""

    num_steps: int
    trained: Tokens
    """Of all steps together."""
    largest: Piece
    """The most tokens that are computed at once with gradients."""
    is_split: bool
    """Whether some step is computed in pieces."""
    can_split: bool
    """Whether the method allows that."""
    sample: Piece
    """Rows by which the operations of all are counted; see `_sample`."""
    sampled: Tokens
    """Of `sample`."""
    longest: TokenSequence
    """The trained sequence of most tokens."""
    probe_tokens: int
    """Tokens of the four rows on which the model is looked at first: the longest and three others."""
    reference: Tokens
    reference_group: Piece
    scoring: Tokens
    """Of one scoring."""
    scoring_group: Piece
    num_scorings: int
    choosing_tokens: int
    kept: Tokens = Tokens()
    """Of the retain and general rows whose reference values are held for the KL of scorings."""


def demand_of(
    settings: UnlearnSettings,
    data: Data,
    *,
    schedule: Schedule,
    method: Method,
    can_split: bool = True,
    num_processes: int = 1,
) -> Demand:
    """Return what a run of these settings computes, each step as the schedule draws it.

    The rows of a step that can be split are dealt to `num_processes`, so that the most tokens computed at once are
    those of one share.
    """
    num_steps = total_steps(settings, schedule)
    total, largest, is_split, num_read = Tokens(), list[int](), False, [0, 0, 0, 0]
    for step, rows in steps_from(schedule, 0, end=num_steps):
        epoch, others = step // schedule.steps_per_epoch, method.alternatives
        chosen = list(rows)
        if others is not None:
            chosen = others.beside(rows, num_forget=data.num_forget, num_rows=data.num_rows, epoch=epoch)
        chosen += [] if data.general is None else data.general.rows(step)
        total += data.count(chosen)
        for index in chosen:
            num_read[data.role(index)] += 1
        dealt = shares_by_size([data.count([index]).read for index in chosen], num_processes) if can_split else []
        shares = [[chosen[place] for place in share] for share in dealt] or [chosen]
        pieces = list[list[int]]()
        for share in shares:
            of_share = _pieces(data, share, settings.max_batch_tokens if can_split else None)
            is_split |= len(of_share) > 1
            pieces += of_share
        largest = max([largest, *pieces], key=lambda piece: data.count(piece).read)
    everything = range(len(data.trained))
    longest = max(data.trained, key=lambda sequence: len(sequence.input_ids))
    scored = Data(data.scored, 0, len(data.scored), [])
    num_runs = len(method.runs)
    sample = _sample(data, num_read)
    return Demand(
        num_steps=num_steps * num_runs,
        trained=total.times(num_runs),
        largest=_piece(data, largest),
        is_split=is_split,
        can_split=can_split,
        sample=_piece(data, sample),
        sampled=data.count(sample),
        longest=longest,
        probe_tokens=len(longest.input_ids) + 3 * data.count(everything).read // len(data.trained),
        reference=data.count(everything),
        reference_group=_largest_group(data),
        scoring=scored.count(range(len(data.scored))),
        scoring_group=_largest_group(scored),
        num_scorings=_num_scorings(settings, schedule) * num_runs + (method.finish != "keep"),
        choosing_tokens=data.choosing_tokens,
        kept=Data(list(data.kept), 0, len(data.kept), []).count(range(len(data.kept))),
    )


def _num_scorings(settings: UnlearnSettings, schedule: Schedule) -> int:
    """How often a run is scored: at the epochs asked for, at its end, and at its start.

    The reference pass tells how the start scores, unless other tokens are scored than are trained on.
    """
    end = total_steps(settings, schedule)
    due = {step for step in steps_to_score(settings, schedule) if step <= end}
    trains_other = settings.validation is not None or settings.span == "text" or settings.positions == "all"
    return len(due | {end}) + trains_other


def _pieces(data: Data, indices: list[int], max_tokens: int | None) -> list[list[int]]:
    if max_tokens is None:
        return [indices]
    lengths = [data.count([index]).read for index in indices]
    return [[indices[place] for place in group] for group in token_groups(lengths, max_tokens)]


def _sample(data: Data, num_read: list[int]) -> list[int]:
    """Return about `NUM_SAMPLED` sequences, of each role as many as steps read of it, evenly spread over the lengths.

    A sequence comes several times where a role has few.
    """
    found: list[int] = []
    for role, num in enumerate(num_read):
        rows = [index for index in range(len(data.trained)) if data.role(index) == role]
        rows.sort(key=lambda index: len(data.trained[index].input_ids))
        share = max(round(NUM_SAMPLED * num / sum(num_read)), 1) if num else 0
        found += [rows[(2 * place + 1) * len(rows) // (2 * share)] for place in range(share)]
    return found


def _largest_group(data: Data) -> Piece:
    groups = _pieces(data, list(range(len(data.trained))), PASS_TOKENS)
    return _piece(data, max(groups, key=lambda group: data.count(group).read, default=[]))


def _piece(data: Data, indices: Collection[int]) -> Piece:
    ordered = sorted(indices)
    num_forget = sum(index < data.num_forget for index in ordered)
    num_retain = sum(data.num_forget <= index < data.num_rows for index in ordered)
    num_general = sum(data.role(index) == _GENERAL for index in ordered)
    return Piece(tuple(data.trained[index] for index in ordered), num_forget, num_retain, num_general)
