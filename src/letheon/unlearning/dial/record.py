"""What a run writes down of its dial, in its log and beside its settings."""

from letheon.training.tracking import Log
from letheon.unlearning.dial.turn import Dialled


def log_dial(log: Log, dialled: Dialled) -> None:
    """Write each scale that was measured, what was chosen and the notes."""
    for point in dialled.choice.points:
        log.write("dial_point", **point.flat())
    log.write(
        "dial",
        dial=dialled.dial,
        scale=dialled.scale,
        reason=dialled.choice.reason,
        reported=[one.flat() for one in dialled.reported],
        duration_s=round(dialled.duration_s, 3),
    )
    for note in dialled.notes():
        log.write("note", message=note)
