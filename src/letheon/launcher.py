"""Which process this is of those that a launcher started, by the variables that torchrun and accelerate set."""

import os
from dataclasses import dataclass

from letheon.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Place:
    """Which of how many processes this one is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among those on this machine."""

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0


def is_launched() -> bool:
    """Return whether a launcher started several processes."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def place() -> Place:
    """Return the place that the launcher gave this process, whether or not processes are joined.

    Raises:
        SettingsError: the launcher's variables contradict one another or are incomplete.
    """
    if not is_launched():
        return Place()
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise SettingsError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, so a launcher started several processes, but "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; start them with torchrun or "
            f"accelerate launch, or unset WORLD_SIZE"
        )
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
    except ValueError as error:
        raise SettingsError(
            f"RANK, WORLD_SIZE and LOCAL_RANK: expected whole numbers ({error}); start the processes with torchrun or "
            f"accelerate launch"
        ) from error
    if not 0 <= rank < size:
        raise SettingsError(f"RANK: expected 0 to {size - 1} of WORLD_SIZE {size}, got {rank}; see how it is launched")
    return Place(rank, size, local_rank)


def check_alone(command: str) -> None:
    """Refuse to be one of several processes.

    Raises:
        SettingsError: a launcher started more than one.
    """
    size = place().size
    if size > 1:
        raise SettingsError(
            f"{command} runs in one process, but the launcher started {size} (WORLD_SIZE); start it without a launcher"
        )
