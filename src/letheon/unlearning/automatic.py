"""The course of a run that finds its own learning rate and its own end.

The learning rate starts low and doubles from scoring to scoring until the forget rows are being forgotten fast enough,
stays there until they are forgotten, and where there are holdout documents until forget texts cost no less than these.
Then it falls to 0 over a cool-down, in which the retain rows recover. A cool-down that ends short of the goals is
followed by more training. This is a range test of the learning rate (Smith, arXiv 1506.01186) on the run's own steps,
so that none of them is thrown away. The KL on general text counts once forgetting has begun, for less where it stands
in the way, and for more again in a cool-down. Other answers count once the rows are forgotten, for more where they are
not learnt soon, and for less where they spread to the retain rows. A gradient much larger than usual is clipped. Where
the retain rows are ruined all the same, training goes back to the last state in which they were not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import dropwhile, takewhile
from statistics import median

from letheon.data.general import HOLDOUT
from letheon.settings import UnlearnSettings
from letheon.training.judge import History, StateScore, sound
from letheon.training.stopping import choose_kept, why_stop
from letheon.unlearning.course import SetCourse
from letheon.unlearning.phases import Phase, Standing, auc_of, falls_soon, match_of, recall_of, recalls_of, rises_soon
from letheon.unlearning.problem import Problem
from letheon.unlearning.scoring_steps import is_to_score, scoring_interval

FORGOTTEN = 0.05
"""Recall of the forget rows at which they count as forgotten, once what matches of their answers has settled."""
SETTLED = 0.05
"""A fall of the forget match below which it has settled. A text of which greedy decoding misses an early token is no
longer recalled and may still be there; a template that other rows share will always match."""
NO_MATCH = 0.15
"""A forget match that needs no settling."""
HIDDEN = 0.525
"""AUC of telling forget texts from holdout documents, where there are any, at which they are hidden. Training lowers
it, past 0.5 as well, from where the dial comes back."""
TAUGHT = 0.9
"""Recall of the other answers of the forget rows, where --instead teaches one each, at which they are learnt."""
RETAINED = 0.95
"""Recall of the retain rows below which training goes on, as a share of their recall before training."""
FIRST_RATES = {"lora": 5e-4, "weights": 5e-6}
"""The learning rate up to the first scoring, by what is trained. Steps of Adam move a LoRA product of a layer with
Xavier-initialised A by about as much at every width."""
MOST_RISE = 32
"""The highest learning rate, as a multiple of the first."""
_LATELY = 3
"""Over how many scorings the forget match must have settled."""
_COOL_DOWN = 2
"""How many scorings a cool-down lasts."""
_LIGHTER, _HEAVIER = 4.0, 2.0
"""By what the weights of the forget terms are divided where retain rows are damaged, and multiplied afterwards."""
_BEGUN = 0.1
"""A fall of forget recall or match by which forgetting has begun."""
_ANCHORED = 4
"""The multiple of the first learning rate above which it rises only once the KL on general text is light."""
_LEAST_ANCHOR = 1 / 64
"""The least that the weight of that KL is multiplied by once it counts."""
_FIRST_TAUGHT, _LEAST_TAUGHT, _MOST_TAUGHT = 1 / 8, 1 / 64, 32.0
"""What the weight of the other answers is multiplied by when they begin to count, and between which limits later."""
_BEYOND = 1.25
"""By what the learning rate rises where an earlier, higher one did damage."""
_DAMAGE = 0.15
"""A fall of retain recall, from before training, at which the learning rate falls."""
_RUIN = 2 * _DAMAGE
"""One from which training goes back, where the next scoring finds no more: hardly any learning rate helps there."""

_CLIPPED = 2.0
"""The multiple of the usual norm of the gradient that it is clipped to: a single step in which it is a hundred times as
large brings rows back and damages others, and for long after it Adam's steps are small (as in AutoClip, Seetharaman et
al. 2020, arXiv 2007.14469, the limit follows from the norms so far)."""
_FEWEST_NORMS = 8
"""With fewer norms of late steps with forget rows nothing is clipped."""


@dataclass(frozen=True, slots=True)
class AutomaticCourse(SetCourse):
    """A course that follows the scores: each phase follows from those so far, so that a run can be resumed."""

    start: StateScore
    """The model before the first step."""
    first_rate: float
    num_forget_rows: int
    """The first rows of the schedule."""
    forget_terms: tuple[str, ...]
    """Their names."""
    general_terms: tuple[str, ...] = ()
    """Likewise."""
    instead_terms: tuple[str, ...] = ()
    """Likewise, where each row is taught one other answer."""
    is_dialled: bool = False
    """Whether what was trained is scaled afterwards, so that forget texts cost as much as unseen ones."""
    _seen: list[Standing] = field(default_factory=list, init=False, repr=False, compare=False)
    """Where the run stood after each score of the latest history: every step asks, and few have a new score."""

    @property
    def _peak(self) -> float:
        return self.first_rate

    def learning_rate(self, step: int, history: History) -> float:
        """Return that of the present phase; it rises linearly up to the first scoring."""
        phase = self.phase(history)
        if not history:
            return phase.rate * min(1.0, (step + 1) / self._interval)
        if phase.cooling_from is None:
            return phase.rate
        return phase.rate * max(0.0, 1 - (step - phase.cooling_from) / self._cool_down_steps)

    def max_gradient_norm(self, step: int, norms: Sequence[float]) -> float | None:
        """Return that of the settings; without one, a multiple of the median of the latest norms with forget rows.

        Retain rows alone have hardly any gradient at first. Where most steps have no others, a limit by their norms
        would cut what forgets down to noise.
        """
        if self.settings.max_gradient_norm is not None:
            return self.settings.max_gradient_norm
        rows = map(self.schedule.rows, range(step - len(norms), step))
        forgetting = [norm for one, norm in zip(rows, norms, strict=True) if min(one) < self.num_forget_rows]
        return None if len(forgetting) < _FEWEST_NORMS else _CLIPPED * median(forgetting)

    def factors(self, history: History) -> Mapping[str, float]:
        """Return what the weights of the terms that the course changes are multiplied by in the next step."""
        phase = self.phase(history)
        return {
            **dict.fromkeys(self.forget_terms, phase.factor),
            **dict.fromkeys(self.general_terms, phase.held),
            **dict.fromkeys(self.instead_terms, phase.taught),
        }

    def is_due(self, step: int, history: History) -> bool:  # noqa: ARG002 - it depends on the step alone
        """Return whether the state after `step` steps is scored and saved."""
        return is_to_score(self.settings, self.schedule, step) or step == self.total_steps

    def why_stop(self, history: History) -> str | None:
        """Return that the goals are reached, or which budget or whose patience is over.

        Patience begins once the rows are forgotten: before that the learning rate rises because nothing gets better.
        """
        since = list(dropwhile(lambda score: recall_of(score, "forget") > FORGOTTEN, history))
        patience = self.settings.patience if since else None
        early = why_stop(since or history, self.judge, patience=patience, waits_on=self.settings.patience_on)
        if early is not None:
            return early
        last = history[-1]
        if self.phase(history).is_over:
            was_known = recall_of(self.start, "forget") > FORGOTTEN
            outcome = "forgotten" if was_known else "nothing to forget, as before"
            return f"{outcome}: {recalls_of(last)}{self._loosened(history)}"
        if last.step >= self.total_steps:
            kept = self.kept(history)
            missed = self._missed([score for score in self._path(history) if score.step <= kept.step])
            return f"finished without reaching {missed}: {recalls_of(kept)}{self._loosened(history)}"
        return None

    def kept(self, history: History) -> StateScore:
        """Return the end of the cool-down that ended a run, else the best of those that reached the goals, or of all.

        In a cool-down retain rows and other text recover, which a score hardly shows. Where forget rows are taught
        other answers, how much their true ones repeat themselves says nothing any more; where the dial is turned
        afterwards, it takes back what forget texts cost beyond unseen ones. Elsewhere both count.
        """
        path = self._path(history)
        within = sound(path, self.judge)
        if (self.is_dialled or self.instead_terms) and self.phase(history).is_over and path[-1] in within:
            return path[-1]
        reached = [score for number, score in enumerate(path) if self._is_reached(path[: number + 1])]
        return choose_kept([one for one in reached if one in within] or within, self.judge, keep=self.settings.keep)

    def goes_back_to(self, history: History) -> StateScore | None:
        """Return the last state that was not damaged, where the latest is ruined."""
        path = self._path(history)
        return None if path[-1] is history[-1] else path[-1]

    def needed(self, history: History) -> frozenset[int]:
        """Return the steps of the state that would be kept now, and of the one that a ruined one would go back to."""
        if not history:
            return frozenset()
        return frozenset(score.step for score in (self.kept(history), *self._undamaged(self._path(history))[-1:]))

    def phase(self, history: History) -> Phase:
        """Return where the run stands after these scores."""
        return self._standing(history).phase

    def _path(self, history: History) -> tuple[StateScore, ...]:
        """Return the scores of the states that led to the present one, without those that training went back from."""
        return self._standing(history).path

    def _standing(self, history: History) -> Standing:
        known = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1].score, zip(history, self._seen, strict=False)))
        del self._seen[known:]
        start = Standing(None, Phase(self.first_rate, MOST_RISE * self.first_rate), ())
        for score in history[known:]:
            self._seen.append(self._after(self._seen[-1] if self._seen else start, score))
        return self._seen[-1] if history else start

    def _after(self, last: Standing, score: StateScore) -> Standing:
        """Return where the run stands after one more scoring."""
        before, undamaged = last.phase, self._undamaged(last.path)
        is_lost = undamaged and before.rate > self.first_rate / 2 and self._is_ruined(last.path[-1], score)
        if is_lost and not before.is_over:
            return Standing(score, replace(before.slower(self.first_rate / 2), cooling_from=None), undamaged)
        path = (*last.path, score)
        phase = before if before.is_over else self._next(before, path)
        is_forgotten = recall_of(score, "forget") <= FORGOTTEN
        if not phase.anchor and (is_forgotten or self._has_begun(score)):
            phase = replace(phase, anchor=1.0)
        if not phase.taught and is_forgotten:
            phase = replace(phase, taught=_FIRST_TAUGHT)
        return Standing(score, phase, path)

    def _is_ruined(self, last: StateScore, score: StateScore) -> bool:
        """Whether retain rows were lost at the last scoring and are not coming back; a single such scoring may be."""
        before, now, start = recall_of(last, "retain"), recall_of(score, "retain"), recall_of(self.start, "retain")
        return max(before, now) < start - _RUIN and not rises_soon(before, now, start - _DAMAGE)

    def _undamaged(self, path: tuple[StateScore, ...]) -> tuple[StateScore, ...]:
        """Return the path up to the last state whose retain rows were not damaged; nothing where there is none."""
        least = recall_of(self.start, "retain") - _DAMAGE
        last = max((place for place, score in enumerate(path, 1) if recall_of(score, "retain") >= least), default=0)
        return path[:last]

    def _next(self, phase: Phase, history: History) -> Phase:
        score, last = history[-1], history[-2] if len(history) > 1 else self.start
        if phase.cooling_from is not None:
            return self._cooled(phase, history)
        if self._is_reached(history):
            return replace(phase, cooling_from=score.step)
        forget, retain = recall_of(score, "forget"), recall_of(score, "retain")
        is_forgotten = forget <= FORGOTTEN and self._is_settled(history)
        allowed = self._retained if is_forgotten else recall_of(self.start, "retain") - _DAMAGE
        if retain < allowed:
            is_helped = rises_soon(recall_of(last, "retain"), retain, allowed)
            return phase if is_helped else self._damaged(phase, is_learning=not self._teaches(score))
        if not self._teaches(score):
            phase = replace(phase, taught=min(2 * phase.taught, _MOST_TAUGHT))
        if self._is_fast(last, score):
            return phase
        if phase.factor < 1:
            return replace(phase, factor=min(1.0, phase.factor * _HEAVIER))
        return self._faster(phase, retain)

    def _has_begun(self, score: StateScore) -> bool:
        """Whether rows are being forgotten.

        Where a model is certain of every token of its rows, a forget term has hardly any gradient at first. Adam makes
        full steps of it all the same, unless it is added to a larger one, such as that of a KL on other text.
        """
        forgotten = recall_of(self.start, "forget") - recall_of(score, "forget")
        return max(forgotten, match_of(self.start) - match_of(score)) > _BEGUN

    def _is_fast(self, last: StateScore, score: StateScore) -> bool:
        """Whether a few more scorings like the latest would forget the rows, and then hide forget texts.

        The AUC of texts that cost far less than others does not move, so what matches of them may fall instead.
        """
        if recall_of(score, "forget") > FORGOTTEN:
            return falls_soon(recall_of(last, "forget"), recall_of(score, "forget"), FORGOTTEN)
        if self._hides(score):
            return True
        falls = match_of(last) > NO_MATCH and falls_soon(match_of(last), match_of(score), NO_MATCH)
        return falls or falls_soon(auc_of(last), auc_of(score), HIDDEN)

    def _faster(self, phase: Phase, retain: float) -> Phase:
        """Return what follows a scoring that finds rows being forgotten too slowly.

        What a model writes that knows little but its rows is made of them, and held there it keeps them. A learning
        rate that rises against that ends in damage: above a moderate one the hold is loosened first.
        """
        if self.general_terms and phase.anchor > _LEAST_ANCHOR and phase.rate >= _ANCHORED * self.first_rate:
            return replace(phase, anchor=phase.anchor / _LIGHTER)
        limit = MOST_RISE * self.first_rate
        if phase.highest < limit and phase.rate == phase.highest and retain >= self._retained:
            limit = min(limit, _BEYOND * phase.highest)
            return replace(phase, rate=limit, highest=limit)
        return replace(phase, rate=min(2 * phase.rate, phase.highest))

    def _damaged(self, phase: Phase, *, is_learning: bool) -> Phase:
        """Return what follows a scoring that finds too little of the retain rows, and hardly more than the one before.

        A learning rate that damaged them the first time is halved. After that the forget terms become lighter. Where
        that did not help either, the learning rate is halved again; or, while other answers are being learnt, which
        spread to the retain rows at first, these count for less.
        """
        if phase.highest == MOST_RISE * self.first_rate:
            return phase.slower(self.first_rate / 2)
        if phase.factor == 1:
            return replace(phase, factor=1 / _LIGHTER)
        if is_learning and phase.taught > _LEAST_TAUGHT:
            return replace(phase, taught=max(phase.taught / _LIGHTER, _LEAST_TAUGHT))
        return replace(phase.slower(self.first_rate / 2), factor=phase.factor / _HEAVIER)

    def _cooled(self, phase: Phase, history: History) -> Phase:
        """Return what follows a scoring in a cool-down."""
        assert phase.cooling_from is not None
        if history[-1].step < phase.cooling_from + self._cool_down_steps:
            return phase
        return replace(phase, is_over=True) if self._is_reached(history) else replace(phase, cooling_from=None)

    def _is_reached(self, history: History) -> bool:
        """Whether the latest state reaches the goals, and is not one in which the forget rows come back."""
        last = history[-1]
        least = min(map(match_of, history))
        is_forgotten = recall_of(last, "forget") <= FORGOTTEN and self._is_settled(history)
        is_gone = is_forgotten and match_of(last) <= max(NO_MATCH, least + SETTLED)
        return is_gone and self._hides(last) and self._keeps(last) and self._teaches(last)

    def _is_settled(self, history: History) -> bool:
        """Whether what matches of the forget answers is little, or has fallen by little lately."""
        if match_of(history[-1]) <= NO_MATCH:
            return True
        lately = history[-_LATELY:]
        if len(history) <= _LATELY or any(recall_of(score, "forget") > 2 * FORGOTTEN for score in lately):
            return False
        return min(map(match_of, history[:-_LATELY])) - min(map(match_of, history)) < SETTLED

    def _hides(self, score: StateScore) -> bool:
        """Whether forget texts cost as much as documents that the model never saw, where the run is given some."""
        return self.settings.holdout is None or auc_of(score) <= HIDDEN

    def _teaches(self, score: StateScore) -> bool:
        """Whether forget rows get other answers, where the run has any to teach and to score."""
        recall = score.values.get("instead_recall")
        return recall is None or recall >= TAUGHT

    def _keeps(self, score: StateScore) -> bool:
        return recall_of(score, "retain") >= self._retained

    @property
    def _retained(self) -> float:
        return RETAINED * recall_of(self.start, "retain")

    def _missed(self, history: History) -> str:
        """Name the goals that the latest of these states falls short of."""
        last, goals = history[-1], list[str]()
        if recall_of(last, "forget") > FORGOTTEN:
            goals.append(f"a forget recall of {FORGOTTEN:g}")
        elif not self._is_settled(history):
            goals.append("a forget match that has settled")
        if not self._hides(last):
            goals.append(f"a membership AUC of {HIDDEN:g}")
        if not self._teaches(last):
            goals.append(f"a recall of the other answers of {TAUGHT:g}")
        if not self._keeps(last):
            goals.append(f"a retain recall of {self._retained:.3f}")
        return " and ".join(goals) or "the end of the cool-down"

    def _loosened(self, history: History) -> str:
        """Say how little the KL on general text counted in the end, where that was less than was asked for."""
        phase = self.phase(history)
        if not self.general_terms or phase.anchor == 1:
            return ""
        why = "stood in the way" if phase.anchor else "waits for forgetting to begin"
        cooled = f", and for {phase.held:g} in the cool-down" if phase.held != phase.anchor else ""
        return f"; the KL on general text, which {why}, counted for {phase.anchor:g} of its weight{cooled}"

    @property
    def _interval(self) -> int:
        return scoring_interval(self.settings, self.schedule)

    @property
    def _cool_down_steps(self) -> int:
        return _COOL_DOWN * self._interval


def course_of(settings: UnlearnSettings, problem: Problem) -> SetCourse | AutomaticCourse:
    """Return the course of a run: the one that its settings fix, or one that finds its own learning rate."""
    if settings.learning_rate != "auto":
        return SetCourse(settings, problem.schedule, problem.judge)
    assert problem.start is not None, "every unlearning run scores the model before its first step"
    first_rate = FIRST_RATES[settings.adapt]
    forget, general, others = (
        tuple(term.name for term in problem.terms if term.role == role) for role in ("forget", "general", "alternative")
    )
    if settings.general == HOLDOUT or problem.general is None:  # a term of the method's own, or no text for one
        general = ()
    if not problem.probes.others:  # likewise, or there are several to a row
        others = ()
    return AutomaticCourse(
        settings,
        problem.schedule,
        problem.judge,
        problem.start.score,
        first_rate,
        problem.num_forget_rows,
        forget,
        general,
        others,
        is_dialled=settings.dial == "membership",
    )
