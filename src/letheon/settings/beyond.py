"""The parts of the settings of `unlearn` about its model and what a run does beyond its rows (see parts.py)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from letheon.settings.base import Settings
from letheon.settings.facts import FILE, FIXED, OWN, RARE, RESUMABLE, SHARED, SIZED, Requires
from letheon.settings.types import General, Instead

_BY_MEMBERSHIP = Requires("dial", "membership")


class WeightSettings(Settings):
    """How the weights of an ordinary checkpoint are kept in memory."""

    heading: ClassVar[str] = "Model and rows"

    quantise: Annotated[Literal["nf4", "int8"] | None, FIXED, SHARED] = Field(
        None,
        description="Keep linear layers in 4 bits (nf4) or 8 bits (int8), by bitsandbytes; unlearn trains an adapter "
        "over them and saves ordinary weights.",
    )
    shard: Annotated[bool, RESUMABLE, SHARED, RARE] = Field(
        False,
        description="Keep a share of the frozen weights in each process of a launcher, and gather a layer at a time.",
    )


class GeneralSettings(Settings):
    """What the model says beside the rows and in place of them."""

    heading: ClassVar[str] = "Beyond the rows"

    general: Annotated[General, FIXED, SHARED, FILE] = Field(
        None,
        description="General text on which a KL keeps the model as it was: a file, auto (what the model itself "
        "writes, and --holdout documents), holdout (these alone), or none [auto; none with a fixed --learning-rate].",
    )
    general_weight: Annotated[float, FIXED, OWN, RARE, Requires("general")] = Field(
        1.0, gt=0, description="Weight of the KL on general text."
    )
    general_batch_size: Annotated[int | None, FIXED, SIZED, RARE, Requires("general")] = Field(
        None, ge=1, description="General texts per step; default: as many tokens as the step's retain rows have."
    )
    instead: Annotated[Instead, FIXED, SHARED, FILE] = Field(
        None,
        description="Answers to learn for forget rows: a file, refusal, auto (made up by the model), or none [refusal; "
        "none with a fixed --learning-rate].",
    )
    instead_weight: Annotated[float, FIXED, OWN, RARE, Requires("instead")] = Field(
        0.1, gt=0, description="Weight of the NLL on these answers."
    )


class DialSettings(Settings):
    """How much of what was trained is kept."""

    heading: ClassVar[str] = GeneralSettings.heading

    dial: Annotated[Literal["membership", "forgotten", "none"], RESUMABLE, OWN] = Field(
        "none",
        description="How to scale what was trained: membership makes membership attacks on --holdout fail (the default "
        "with --holdout), forgotten takes the smallest scale that still forgets.",
    )
    dial_forget_budget: Annotated[float, RESUMABLE, OWN, RARE, _BY_MEMBERSHIP] = Field(
        0.1, ge=0, le=1, description="By how much the dial may raise forget recall above what training reached."
    )
    dial_retain_budget: Annotated[float, RESUMABLE, OWN, RARE, _BY_MEMBERSHIP] = Field(
        0.05,
        ge=0,
        le=1,
        description="By how much the dial may lower retain recall below its values before and after training.",
    )
    dial_text_budget: Annotated[float | None, RESUMABLE, OWN, RARE, _BY_MEMBERSHIP] = Field(
        None,
        ge=0,
        description="By how many nats per token the loss of the --holdout documents may exceed its value before "
        "training.",
    )
