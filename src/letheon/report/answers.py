"""What a model says to the rows that it forgot, and besides them, in words: whether that shows that it was changed."""

from typing import Literal

from letheon.scores.fluency import CHANGED_NATS, GENERAL, LOSS_BEFORE, OWN_LOSS_BEFORE, Fluencies, more_than_own
from letheon.scores.score import Scores

STUCK_SHARE = 0.25
"""By how much the share of answers to forget rows that repeat themselves may exceed that of the other answers."""
FOREIGN_NATS = 6.0
"""Mean loss of an answer's token under the model before from which it would not have written the answer.

Its own samples cost 2 to 4 nats, tokens drawn at random the logarithm of the vocabulary and more, 9 to 12.
"""

CHANGED_KL = 0.3
"""KL, nats a token, of general text from which what a model writes besides the rows is called changed."""

Reading = tuple[Literal["good", "mixed"], str]


def answers_reading(before: Scores, after: Scores) -> tuple[Reading, ...]:
    """Return a clause on the answers to the forget rows; none where it is not known how they read.

    That they read as text is only said where their loss under the model before is known: text that does not repeat
    itself may still be none.
    """
    stuck, loss = after.value("fluency.forget.degenerate"), after.value("fluency.forget.loss_before")
    if stuck is None:
        return ()
    usual = max(before.value("fluency.forget.degenerate") or 0.0, after.value("fluency.retain.degenerate") or 0.0)
    share = f"{100 * stuck:.0f}% repeat themselves"
    cost = "" if loss is None else f", a token costs the model before {loss:.1f} nats"
    if stuck - usual >= STUCK_SHARE or (loss is not None and loss >= FOREIGN_NATS):
        return (("mixed", f"its answers to the forget rows are gibberish, which shows what it forgot ({share}{cost})"),)
    if loss is None:
        return ()
    return (("good", f"its answers to the forget rows read as text ({share}{cost})"),)


def general_reading(fluencies: Fluencies, kl: float | None) -> tuple[Reading, ...]:
    """Return a clause on what the model says besides the rows; none where that is not known.

    It goes by its answers to everyday questions, or, where it was asked none, by the KL on general text.
    """
    more = more_than_own(fluencies)
    if more is not None:
        loss, own = (fluencies[GENERAL][name] for name in (LOSS_BEFORE, OWN_LOSS_BEFORE))
        costs = f"a token costs the model before {loss:.2f} nats, of its own answers {own:.2f}"
        if more >= CHANGED_NATS:
            return (("mixed", f"its answers to everyday questions have changed ({costs})"),)
        return (("good", f"its answers to everyday questions are much as before ({costs})"),)
    if kl is None:
        return ()
    if kl >= CHANGED_KL:
        return (("mixed", f"what it writes besides has changed (KL {kl:.2f} nats a token)"),)
    return (("good", f"what it writes besides is much as before (KL {kl:.2f} nats a token)"),)
