"""Steps that do not fit into a GPU's memory: computed again in pieces of half the tokens.

The pieces of a step add up to the same loss and gradient however many there are, so a run goes on as if its
--max-batch-tokens had been smaller from the start.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from letheon.errors import SettingsError
from letheon.model.memory import unless_out_of_memory
from letheon.training.job import Job
from letheon.training.state import Run

_T = TypeVar("_T")


def within_memory(run: Run[Job], rows: Sequence[int], compute: Callable[[int], _T]) -> _T:
    """Return what `compute` makes of a step over `rows`, given the most tokens that it may compute at once.

    Where memory runs out, the gradients so far are dropped, the number is halved for the rest of the run, and the step
    is computed again from its beginning.

    Raises:
        SettingsError: it does not fit in the smallest pieces either.
    """
    while True:
        most = run.most_tokens or run.settings.max_batch_tokens
        found = unless_out_of_memory(partial(compute, most))
        if found is not None:
            return found
        for parameter in run.job.adapted.model.parameters():
            parameter.grad = None
        run.optimiser.zero_grad(set_to_none=True)
        run.most_tokens = _halved(run, rows, most)
        _tell(run, run.most_tokens)


def _halved(run: Run[Job], rows: Sequence[int], most: int) -> int:
    """Half of the tokens that were computed at once, but no fewer than the longest row has."""
    at_once = _at_once(run, rows, most)
    fewer = max(at_once // 2, *(run.job.num_tokens_of([row]) for row in rows))
    if _at_once(run, rows, fewer) == at_once:
        raise SettingsError(
            f"step {run.step + 1}: the GPU's memory is not enough for {at_once} tokens at once, and the step cannot be "
            f"computed in smaller pieces; use --gradient-checkpointing, --quantise nf4 or a shorter --max-length, and "
            f"go on by --resume (--plan shows what takes the memory)"
        )
    return fewer


def _at_once(run: Run[Job], rows: Sequence[int], most: int) -> int:
    return max(piece.batch.num_tokens for piece in run.job.pieces(rows, max_tokens=most))


def _tell(run: Run[Job], most: int) -> None:
    message = (
        f"step {run.step + 1}: the GPU's memory ran out; the step is computed again, and all that follow, with at most "
        f"{most} tokens at once (--max-batch-tokens {most}), which gives the same result"
    )
    run.hooks.log.write("note", message=message)
    run.hooks.observer.note(message)
