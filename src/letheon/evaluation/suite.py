"""What a suite is: facts about its scores, and three functions that say what it asks, measures and aggregates.

A suite is one file in suites/, with a reader in data/benchmarks where its rows need one;
the registry finds it by its name, SUITE.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from letheon.data.rows import Rows
from letheon.errors import SettingsError
from letheon.scores.predictions import Prediction
from letheon.scores.results import Evaluation, Form, PlainResults, Results, read_plain
from letheon.scores.score import Scores
from letheon.settings import EvaluateSettings
from letheon.storage.run_folder import Entry

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Note = Callable[[str], None]
CHOICES = (
    *("members", "nonmembers", "mmlu", "mmlu_limit", "mmlu_harness"),
    *("never", "never_results", "max_new_tokens", "sound"),
)
"""Settings of an evaluation that not every suite has a use for."""
Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); a suite names its stages."""


class Asking(Protocol):
    """The form in which rows are to be asked beside the suite's own prompts."""

    @property
    def template(self) -> str:
        """A form, or "auto" where it is to be found out with the model."""

    @property
    def date(self) -> str:
        """The date given to chat templates that write today's date."""

    @property
    def source(self) -> str:
        """Who says so: a run, a setting, or the model."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a suite asks, read and checked before weights are loaded."""

    rows: Mapping[str, Rows]
    """Sets of rows by name."""
    others: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Documents and questions by name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings that the suite alone knows."""
    trained: Mapping[str, Rows] = field(default_factory=dict)
    """The sets that runs train on, where these are other rows than are asked; runs and evaluations are paired by
    them."""


@dataclass(frozen=True, slots=True)
class Target:
    """The model that is asked, and how."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    form: Asking | None = None
    """In which form to ask the rows too; None: only with the suite's own prompts."""
    exact: bool = False
    """One row at a time."""
    whole_generations: bool = False
    batch_size: int = 32
    max_new_tokens: int = 256
    progress: Progress | None = None

    def stage(self, name: str) -> Callable[[int, int], None] | None:
        """Return who hears of (done, total) in a stage; None where nobody does."""
        return None if self.progress is None else partial(self.progress, name)


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found of a model: all that its scores are made of."""

    predictions: tuple[Prediction, ...] = ()
    in_form: tuple[Prediction, ...] = ()
    """To the rows in another form than the suite's own prompts; empty where that gives the model the same tokens."""
    form: Form | None = None
    others: Mapping[str, Any] = field(default_factory=dict)
    """What else was measured, by name; predictions that are scored again are scored with it."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why something was not measured."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a score, or several of a kind, is to be read."""

    of: str
    better: str
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """Two scores that are drawn against each other in what is published on a suite."""

    across: str
    up: str
    is_log: bool = False
    """Whether the axis that goes up is logarithmic, as for p-values."""
    level: float | None = None
    """A value of the score that goes up, at which a line is drawn."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite."""

    name: str
    scores: Scores
    """Its scores without values, as far as they are known before anything is scored; studies know no others."""
    objective: str
    """The score that a search makes as good as it can unless others are named."""
    ask: Callable[[EvaluateSettings, Note | None], Asked]
    measure: Callable[[Target, Asked], Measured]
    aggregate: Callable[[PlainResults, Measured], Results]
    """Fills the scores of results that have none yet; needs no model."""
    readings: tuple[Reading, ...] = ()
    plot: Plot | None = None
    """What studies draw besides what was forgotten against what was retained."""
    unpredicted: tuple[str, ...] = ()
    """What it measures besides predictions, by the names in `Measured.others`."""
    takes: tuple[str, ...] = ()
    """Which of `CHOICES` it has a use for."""
    parities: tuple[str, ...] = ()
    """Whose definitions it can follow, the default first; empty where there is one definition alone."""
    sets: tuple[str, ...] = ("forget", "retain")
    """The sets of rows that predictions may be of."""
    read: Callable[[Mapping[str, Any], Path], Results] = read_plain
    """Makes results of the fields of a results.json."""
    impossible: Callable[[Results], Iterable[str]] = lambda _: ()
    """Says where the numbers of results contradict one another."""
    files: Callable[[Evaluation], Mapping[Entry, str]] = lambda _: {}
    """Texts of the files that are written beside results.json."""

    def check_taken(self, settings: EvaluateSettings) -> None:
        """Check that no setting of an evaluation is given in vain.

        Raises:
            SettingsError: the suite has no use for one, or cannot follow the definitions that are asked for.
        """
        self.parity_of(settings)
        for name in CHOICES:
            default = EvaluateSettings.model_fields[name].default
            if name not in self.takes and getattr(settings, name) != default:
                able = f"; it takes {', '.join(self.takes)}" if self.takes else ""
                raise SettingsError(f"{name}: has no effect with the suite {self.name}; leave it out{able}")

    def parity_of(self, settings: EvaluateSettings) -> str | None:
        """Return whose definitions an evaluation follows: those asked for, or the default; None without a choice.

        Raises:
            SettingsError: the suite cannot follow those that are asked for.
        """
        if settings.parity is None:
            return next(iter(self.parities), None)
        if settings.parity not in self.parities:
            known = " or ".join(self.parities) or "none, there is one definition of its scores"
            raise SettingsError(f"parity: expected {known} for the suite {self.name}, got '{settings.parity}'")
        return settings.parity
