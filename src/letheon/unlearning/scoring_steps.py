"""After which steps a run is scored and saved."""

from letheon.data.schedules import Schedule
from letheon.errors import SettingsError
from letheon.settings import CourseSettings, StepSettings

SCORING_EPOCHS = 5
"""Epochs between scorings of a run with a fixed learning rate."""


def total_steps(settings: StepSettings, schedule: Schedule) -> int:
    """Return how many steps a run takes if nothing ends it."""
    return min(schedule.num_steps, settings.max_steps or schedule.num_steps)


def check_score_at(settings: CourseSettings, schedule: Schedule) -> None:
    """Refuse an epoch to score at that is no step of the run, or is none after which it is scored.

    Raises:
        SettingsError: it comes after the last step or before the first, or between two scorings of a run that follows
            them.
    """
    last = total_steps(settings, schedule)
    for epoch in settings.score_at or ():
        step = round(epoch * schedule.steps_per_epoch)
        if step > last:
            raise SettingsError(
                f"score_at: epoch {epoch:g} is over after step {step}, but the run ends after step {last} (--max-steps "
                f"{settings.max_steps}); leave it out or raise --max-steps"
            )
        if step == 0:
            raise SettingsError(
                f"score_at: epoch {epoch:g} is less than half a step, since an epoch has {schedule.steps_per_epoch} "
                f"steps; the first step is over at epoch {1 / schedule.steps_per_epoch:.3g}"
            )
        every = scoring_interval(settings, schedule)
        if settings.learning_rate == "auto" and step % every and step != last:
            raise SettingsError(
                f"score_at: a run that finds its own learning rate is scored every {every} steps, of which epoch "
                f"{epoch:g} (step {step}) is none; name epochs that are, or set --checkpoint-epochs or "
                f"--checkpoint-steps"
            )


def steps_to_score(settings: CourseSettings, schedule: Schedule) -> set[int]:
    """Return after which steps a run is scored and saved, besides its end."""
    if _is_scored_there_alone(settings):
        return named_steps(settings, schedule)
    every = scoring_interval(settings, schedule)
    return set(range(every, total_steps(settings, schedule) + 1, every))


def is_to_score(settings: CourseSettings, schedule: Schedule, step: int) -> bool:
    """Return whether `step` is one of `steps_to_score`, without listing them."""
    if _is_scored_there_alone(settings):
        return step in named_steps(settings, schedule)
    return 0 < step <= total_steps(settings, schedule) and step % scoring_interval(settings, schedule) == 0


def named_steps(settings: CourseSettings, schedule: Schedule) -> set[int]:
    """Return the steps that `score_at` names."""
    return {round(epoch * schedule.steps_per_epoch) for epoch in settings.score_at or ()}


def _is_scored_there_alone(settings: CourseSettings) -> bool:
    """Whether a run is scored at `score_at` alone; one that follows its scores needs them at even distances."""
    return settings.score_at is not None and settings.learning_rate != "auto"


def scoring_interval(settings: CourseSettings, schedule: Schedule) -> int:
    """Return how many steps lie between two scorings."""
    return settings.checkpoint_steps or (settings.checkpoint_epochs or SCORING_EPOCHS) * schedule.steps_per_epoch
