"""What an attack is: what it needs, what it does to a model, and what it measures.

An attack is one file of this folder with its attacks in a tuple `ATTACKS` (the registry finds it), its source in its
docstring, and a test on a model where the right answer is known. The core runs it on every control (the model before,
the unlearned one, one that never saw the rows, one that is known to hide them) and on placebo rows; an attack knows of
one model and of the rows that it is given. It never trains on what it then asks, and leaves the model as it found it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon.data.rows import Row
from letheon.data.sequences import TokenSequence
from letheon.evaluation.in_form import AskedForm
from letheon.progress import Progressed

DEFAULT_SAMPLES = 32
HIDING = "hiding"
"""The model that was trained to refuse the rows."""
HIDING_UNTIL_ROUNDED = "hiding-until-rounded"
"""The model that refuses the rows until its weights are rounded."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Given:
    """What an audit has beside the rows that are attacked; sampled, so every row of it may be used."""

    rows: Sequence[Row] = ()
    """Forget rows."""
    retain: Sequence[Row] = ()
    """Rows to keep: few-shot examples, text to train on that tells nothing of the forget rows."""
    unseen: Sequence[Row] = ()
    """Placebo rows: of the form of the forget rows, never seen by any of the models."""
    text: Sequence[str] = ()
    """General text."""
    has_original: bool = False
    """Whether the model before is there."""
    has_never: bool = False
    """Whether a model that never saw the forget rows is there."""
    has_holdout: bool = False
    """Whether the placebo rows are the user's own, drawn as the forget rows were; else they are made up."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One loaded model under attack, and how its rows are asked."""

    name: str
    """Which control it is: "before", "after", "never", `HIDING` or `HIDING_UNTIL_ROUNDED`."""
    model: PreTrainedModel
    """The merged model in evaluation mode."""
    tokenizer: PreTrainedTokenizerBase
    form: AskedForm
    """The form in which the model before knows the rows; never "auto"."""
    given: Given = field(default_factory=Given)
    original: PreTrainedModel | None = None
    """The model before, where it is there; `model` itself if that is the one."""
    reference: PreTrainedModel | None = None
    """The model that never saw the rows, where it is there; `model` itself if that is the one."""
    max_new_tokens: int = 256
    """Longest answer that is generated."""
    batch_size: int = 32
    num_samples: int = DEFAULT_SAMPLES
    """Answers that are drawn of each row by attacks that sample."""
    seed: int = 0
    _read: dict[tuple[str, int, int], Any] = field(default_factory=dict, repr=False, compare=False)
    """What several attacks read of the same models and rows; all subjects of an audit share it."""

    def reads(
        self, what: str, model: PreTrainedModel, sequences: Sequence[TokenSequence], read: Callable[[], list[_T]]
    ) -> list[_T]:
        """Return `what` is read of sequences by one of the models of the audit, which `read` does the first time.

        Of a model that changes, such as a copy in training, nothing may be read by this.
        """
        key = (what, id(model), hash(tuple(sequences)))
        if key not in self._read:
            self._read[key] = read()
        found: list[_T] = self._read[key]
        return found


@dataclass(frozen=True, slots=True)
class Point:
    """What an attack of one strength brings back."""

    strength: float
    """In the unit of the attack."""
    values: tuple[float, ...]
    """(R,) what is known of each attacked row, 0 to 1."""
    label: str = ""
    """What the strength stands for where the number does not say it ("nf4")."""
    texts: tuple[str, ...] = ()
    """(R,) what the model said to each row, for the examples of a report; empty where it said nothing."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What an attack found in one model of some rows."""

    rows: tuple[int, ...]
    """Places, in the rows that were given, of those that were asked: all, or the half that was not trained on."""
    points: tuple[Point, ...]
    """In rising strength of attack; the core adds what is known without one."""
    notes: tuple[str, ...] = ()
    """What a reader has to know ("the third prompt won")."""


Measure = Literal["answers", "own"]
"""What values mean. "answers": knowledge of a row as the core measures it without an attack (knowledge.py), so
that an attack's gain is a difference to that. "own": a measure of the attack's own, 0 to 1, higher for rows that are
known, which the core compares with that of placebo rows and of the never-knew model at the same strength."""


def nothing_needed(given: Given) -> str | None:  # noqa: ARG001 - others look at it
    """Return None: the attack can always run."""
    return None


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack that asks for rows."""

    name: str
    """As the flag --attacks has it, such as "relearning-part-lora"."""
    title: str
    """As tables have it."""
    source: str
    """Paper or program that it is from."""
    unit: str
    """Of the strength: "steps", "samples", "bits"."""
    run: Callable[[Subject, Sequence[Row], Progressed], Knowledge]
    """Attack one model for some rows; called with (stage, done, total) as it goes on."""
    needs: Callable[[Given], str | None] = nothing_needed
    """Returns why the attack cannot run, in words for the user, None if it can."""
    measure: Measure = "answers"
    passes: float = 1.0
    """About how many times the rows are generated on one model: the cheapest attacks come first."""
    halves: bool = False
    """Whether it trains on one half of the rows and asks for the other, so that it is given twice as many."""
    counts: bool = True
    """Whether it is part of the verdict; False where a model that never saw the rows gives in to it too."""
    is_default: bool = True
    """Whether it is run where none is chosen."""
    hidden_in: tuple[str, ...] = (HIDING,)
    """The models known to hide the rows on which it is run; it works if it brings them back on one."""


@dataclass(frozen=True, slots=True)
class Separated:
    """How much one attack takes each row for one that was trained on; only the order of values counts."""

    seen: tuple[float, ...]
    """Of the forget rows."""
    unseen: tuple[float, ...]
    """Of rows that no model saw."""


@dataclass(frozen=True, slots=True)
class Separation:
    """An attack that tells forget rows from rows that were never seen: what it finds is an AUC, not knowledge."""

    name: str
    title: str
    source: str
    run: Callable[[Subject, Sequence[Row], Sequence[Row], Progressed], dict[str, Separated]]
    """Judge forget rows and unseen ones; gives values by the name of the score ("loss", "min-k")."""
    needs: Callable[[Given], str | None] = nothing_needed
    passes: float = 0.1
    counts: bool = True
    is_default: bool = True


AnyAttack = Attack | Separation
