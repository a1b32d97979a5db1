"""Which runs can be trained together over one frozen model."""

import json
from collections.abc import Callable, Sequence

from letheon.objective.methods import Method
from letheon.objective.parts import needs_of
from letheon.settings import UnlearnSettings
from letheon.settings.facts import SHARED, names_where
from letheon.unlearning.resolve import method_of, resolve_settings, terms_of

_ALONE: tuple[tuple[Callable[[UnlearnSettings, Method], bool], str], ...] = (
    (
        lambda s, _: s.adapt != "lora",
        "trains the weights themselves (--adapt weights), which several runs cannot share",
    ),
    (lambda s, _: s.dora, "trains magnitudes of the weights (--dora) besides the low-rank product"),
    (lambda s, _: s.lora_dropout > 0, "drops inputs of its adapter at random (--lora-dropout)"),
    (
        lambda s, _: s.gradient_checkpointing,
        "computes its layers again in the backward pass (--gradient-checkpointing)",
    ),
    (lambda s, _: s.store_lower, "begins its steps at stored states (--store-lower)"),
    (lambda s, _: s.time_limit_s is not None, "has a time limit, in which it gets less done beside others"),
    (lambda _, m: _has_own_answers(m), "trains on answers that are its own"),
    (lambda _, m: m.layer is not None, "looks at hidden states of a layer of its own"),
    (lambda _, m: len(m.runs) > 1 or m.finish != "keep", "changes its adapter after training"),
)


def _has_own_answers(method: Method) -> bool:
    """Whether the method trains on other answers that its name or seed decides; `instead` names those of all."""
    return method.alternatives is not None and method.alternatives.kind not in ("refusal", "given")


def why_alone(settings: UnlearnSettings) -> str | None:
    """Return why a run cannot be trained beside others; None if it can.

    Raises:
        SettingsError: the settings contradict one another.
    """
    resolved = resolve_settings(settings)
    method = method_of(resolved)
    return next((f"it {reason}" for is_so, reason in _ALONE if is_so(resolved, method)), None)


def groups_of(settings: Sequence[UnlearnSettings]) -> list[list[int]]:
    """Return the runs that can be trained together, as indices in rising order, groups by their first; others alone.

    Together go plain low-rank adapters in the same layers of the same checkpoint, on the same rows in the same form;
    settings that are not `SHARED` may differ. KLs of two directions need two references and are apart. No run gives no
    group.

    Raises:
        SettingsError: settings contradict one another.
    """
    groups: dict[str, list[int]] = {}
    for index, one in enumerate(settings):
        key = f"alone {index}" if why_alone(one) is not None else _shared(one)
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def _shared(settings: UnlearnSettings) -> str:
    """What runs have in common, as a key."""
    resolved = resolve_settings(settings)
    shared = names_where(UnlearnSettings, lambda facts: facts.population is SHARED)
    kept = {name: value for name, value in resolved.plain().items() if name in shared}
    kept["is_reverse"] = needs_of(terms_of(method_of(resolved), resolved)).kl == "reverse"
    if resolved.validation is not None:
        kept["split"] = resolved.seed  # which rows are left out follows from it
    return json.dumps(kept, sort_keys=True)
