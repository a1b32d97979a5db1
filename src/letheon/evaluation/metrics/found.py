"""What metrics find, as data; without torch."""

from dataclasses import dataclass

_SMALL_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class RougeDrops:
    """What the official ROUGE tokenizer drops of a split's completions: the answers, not the generations.

    A letter is a letter, digit or emoji with the marks that stand on it.
    """

    num_letters: int
    num_dropped: int
    """Letters of which not all is a-z or 0-9."""
    num_answers: int
    num_emptied: int
    """Answers with letters of which nothing is left, so that they score 0 whatever the model says."""

    @property
    def matters(self) -> bool:
        """Whether an answer is left with nothing, or one letter in a hundred is dropped.

        A name with an accent in an English text leaves the official score what it is; the counts still tell of it.
        """
        return self.num_emptied > 0 or self.num_dropped > _SMALL_SHARE * self.num_letters


@dataclass(frozen=True, slots=True)
class MembershipScores:
    """Loss-based membership attack on documents."""

    auc: float
    """Area under the ROC curve of -loss, members = 1; 0.5 is what a model that never saw them gives."""
    auc_interval: tuple[float, float]
    """95% interval of the AUC (DeLong)."""
    score: float
    """1 - 2 |AUC - 0.5|, 1 is best."""
    score_interval: tuple[float, float]
    """The range of `score` over `auc_interval`."""
    mean_member_loss: float
    """Mean over documents of the mean token cross-entropy, nats."""
    mean_nonmember_loss: float
    num_members: int
    num_nonmembers: int


@dataclass(frozen=True, slots=True)
class MmluScores:
    """Multiple-choice accuracy."""

    accuracy: float
    """Question-weighted mean over all subjects."""
    subjects: dict[str, float]
    num_questions: int
    num_shots: int
    limit_per_subject: int | None
    """How many questions of each subject were asked, the first ones; None: all of them."""
