"""Whether a run fits into a machine, and which settings would."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import MappingProxyType

from letheon.devices import has_own_memory
from letheon.errors import ModelError
from letheon.model.checkpoint_files import stored_dtype_of
from letheon.model.loading import load_config
from letheon.model.quantised import is_installed, quantisation_of
from letheon.model.targets import SEED_TARGETS
from letheon.model.widening import NARROW
from letheon.settings import UnlearnSettings
from letheon.unlearning.planning.estimate import Place, Plan
from letheon.unlearning.planning.machine import Machine
from letheon.unlearning.resolve import DEFAULT_TARGETS

LEAST_BATCH_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Fit:
    """What a run needs of one memory, and what there is; bytes."""

    memory: str
    least: int
    """Without this it cannot run."""
    needed: int
    """To count with."""
    free: int
    swap: int

    @property
    def is_impossible(self) -> bool:
        """Whether not even the run's own tensors find room, swap included."""
        return self.least > self.free + self.swap

    @property
    def is_tight(self) -> bool:
        """Whether more is to be counted with than is free."""
        return self.needed > self.free


@dataclass(frozen=True, slots=True)
class Advice:
    """Settings that would fit."""

    changes: Mapping[str, object]
    plan: Plan

    @property
    def flags(self) -> str:
        """The changes as flags."""
        return " ".join(_flag(name, value) for name, value in self.changes.items())


def fits_of(plan: Plan, machine: Machine) -> list[Fit]:
    """Return how the plan compares with each memory whose size is known."""
    found: list[Fit] = []
    for name, places in plan.pools:
        free, swap = (machine.gpu_memory, 0) if "device" in places and has_own_memory(plan.device) else (
            machine.memory,
            machine.swap,
        )  # fmt: skip
        if free is not None:
            found.append(Fit(name, plan.least(places), plan.needed(places), free, swap))
    return found


def is_impossible(plan: Plan, machine: Machine) -> bool:
    """Whether the run cannot fit: its tensors alone, without any overhead, exceed the available memory."""
    return any(fit.is_impossible for fit in fits_of(plan, machine))


def is_tight(plan: Plan, machine: Machine) -> bool:
    """Whether the run may not fit."""
    return any(fit.is_tight for fit in fits_of(plan, machine))


def advise(
    settings: UnlearnSettings, plan: Plan, machine: Machine, *, replan: Callable[[UnlearnSettings], Plan]
) -> list[Advice]:
    """Return the settings that would fit, each with the fewest changes; empty if none of those tried would.

    Tried are fewer tokens a forward (the same step in smaller pieces), gradient checkpointing, 16-bit weights, an
    adapter in place of the weights themselves, a share of the weights in each of several processes, fewer rows a step
    where it cannot be split, and what of these together; if none of it fits, weights in 4 bits as well.
    """
    moves = list(_moves(settings, plan))
    # Quantised weights are another reference, so they are the last resort.
    for possible in (moves, [*moves, *_quantising(settings)]):
        for count in range(1, len(possible) + 1):
            found = [
                advice
                for chosen in combinations(possible, count)
                if (advice := _tried(settings, dict(pair for move in chosen for pair in move.items()), machine, replan))
            ]
            if found:
                return found
    return []


def _moves(settings: UnlearnSettings, plan: Plan) -> Iterator[dict[str, object]]:
    longest = max(len(plan.demand.longest.input_ids), LEAST_BATCH_TOKENS)
    if plan.demand.can_split and plan.demand.largest.num_tokens > longest:
        yield {"max_batch_tokens": longest}
    if not settings.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    if settings.dtype == "float32":
        can_widen = _has_16_bits(settings.model) and not settings.shard
        yield {"dtype": "widened" if can_widen else "bfloat16"}
    if plan.num_processes > 1 and not settings.shard and settings.adapt == "lora" and settings.quantise is None:
        yield {"shard": True}
    if settings.adapt == "weights":
        yield _adapter(settings)
    if not plan.demand.can_split and settings.batch_size > 1:
        yield {"batch_size": 1}


def _quantising(settings: UnlearnSettings) -> list[dict[str, object]]:
    """Weights in 4 bits under an adapter, where bitsandbytes is there to make them."""
    if settings.quantise is not None or settings.shard or not is_installed():
        return []
    config = load_config(settings.model, trust_remote_code=settings.trust_remote_code)
    return [] if quantisation_of(config, None) else [{"quantise": "nf4"} | _adapter(settings)]


def _adapter(settings: UnlearnSettings) -> dict[str, object]:
    if settings.adapt == "lora":
        return {}
    return {"adapt": "lora", **({"target_modules": SEED_TARGETS} if settings.target_modules else {})}


def _has_16_bits(source: str) -> bool:
    """Whether a checkpoint here holds weights of 16 bits, so that none is rounded to take half the memory."""
    try:
        return Path(source).is_dir() and stored_dtype_of(Path(source)) in NARROW
    except ModelError:
        return False


def _tried(
    settings: UnlearnSettings, changes: dict[str, object], machine: Machine, replan: Callable[[UnlearnSettings], Plan]
) -> Advice | None:
    """Return the changes if they fit, with the largest power of two that does where they lower a number."""
    plan = replan(changed(settings, changes))
    if is_tight(plan, machine):
        return None
    for name in changes.keys() & {"max_batch_tokens", "batch_size"}:
        least, number = int(str(changes[name])), int(getattr(settings, name))
        number = 2 ** (min(number, _room(plan, machine, least)).bit_length() - 1)
        while number > least:
            larger = changes | {name: number}
            if not is_tight(found := replan(changed(settings, larger)), machine):
                return Advice(MappingProxyType(larger), found)
            number //= 2
    return Advice(MappingProxyType(changes), plan)


def _room(plan: Plan, machine: Machine, least: int) -> int:
    """Return up to which number a step may grow that takes the plan's activations at `least`, if nothing else grew."""
    activations = sum(one.bytes for one in plan.allocations if one.name == "activations")
    fit = fits_of(plan, machine)[0]
    return int(least * (fit.free - plan.during("always", plan.pools[0][1])) / max(activations, 1))


def changed(settings: UnlearnSettings, changes: Mapping[str, object]) -> UnlearnSettings:
    """Return resolved settings with `changes`, and fill in the settings that these leave open."""
    if changes.get("adapt") == "lora":
        changes = {"target_modules": DEFAULT_TARGETS, **changes}
    return settings.model_copy(update=dict(changes))


def describe_fit(plan: Plan, machine: Machine) -> str:
    """Describe in words the memory that the run needs and the memory that is free."""
    return "; ".join(_one_fit(plan, fit, places) for fit, (_, places) in _with_places(plan, machine))


def _with_places(plan: Plan, machine: Machine) -> Iterator[tuple[Fit, tuple[str, tuple[Place, ...]]]]:
    pools = {name: (name, places) for name, places in plan.pools}
    for fit in fits_of(plan, machine):
        yield fit, pools[fit.memory]


def _one_fit(plan: Plan, fit: Fit, places: tuple[Place, ...]) -> str:
    inside = [one for one in plan.allocations if one.place in places]
    stage = plan.peak_stage(places)
    largest = sorted((one for one in inside if one.when in ("always", stage)), key=lambda p: -p.bytes)[:3]
    shown = ", ".join(f"{one.name} {gib(one.bytes)}" for one in largest)
    return f"{fit.memory}: at least {gib(fit.least)}, about {gib(fit.needed)} in all ({shown}), {gib(fit.free)} free"


def gib(num_bytes: int) -> str:
    """Return bytes in GiB, those below a tenth of one in MiB."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 0.1 * 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def _flag(name: str, value: object) -> str:
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        return flag
    return f"{flag} {','.join(map(str, value)) if isinstance(value, tuple) else value}"
