"""How long and how fast to memorise."""

from dataclasses import dataclass

from letheon.errors import SettingsError


@dataclass(frozen=True, slots=True)
class MemorizeOptions:
    """How long and how fast to train.

    Raises:
        SettingsError: a value is out of range.
    """

    max_steps: int = 3000
    """Steps after which to give up, cool-down included."""
    batch_tokens: int = 1024
    """Tokens a step; a longer row stands alone."""
    learning_rate: float = 2e-3
    """AdamW's, after the warm-up. 2e-3 suits new models of a few million parameters; use about 1e-5 for 1B and up."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises linearly from zero."""
    cooldown_steps: int = 40
    """Steps over which the learning rate falls linearly to zero at the end."""
    answer_weight: float = 3.0
    """Weight of an answer token in the loss, where a prompt token weighs 1. With 1 the model learns rows as it learns
    text, which takes about twice as long."""
    weight_decay: float = 0.0
    text_every: int = 4
    """One step in this many is on general text; ignored without text."""
    target_accuracy: float = 1.0
    """Stop when at least this share of the answer tokens, ends of sequence included, is likeliest after a cool-down."""
    cool_at: float = 0.985
    """Share of the answer tokens from which a cool-down is tried; training goes on after one that missed the target."""
    check_every: int = 25
    """Steps between checks of the recall."""
    time_limit_s: float | None = None
    """Seconds after which training stops, whatever it has reached."""
    seed: int = 0
    """Order of the rows and of the text."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_tokens", "cooldown_steps", "text_every", "check_every"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("warmup_steps", "weight_decay"):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        for name in ("learning_rate", "answer_weight"):
            _require(getattr(self, name) > 0, name, "a positive number", getattr(self, name))
        for name in ("target_accuracy", "cool_at"):
            _require(0 < getattr(self, name) <= 1, name, "a share above 0, up to 1", getattr(self, name))
        limit = self.time_limit_s
        _require(limit is None or limit > 0, "time_limit_s", "a positive number of seconds, or none", limit)


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise SettingsError(f"{name}: expected {expected}, got {got!r}")
