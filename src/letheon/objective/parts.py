"""Terms: losses bound to the values of a batch, their weighted sum, and those that methods are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal, cast

from letheon.objective.losses import activation, forget, preference, quantile, retain
from letheon.objective.values import Loss, Needs, Roles, Tokens, TokenValues

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import Tensor

    from letheon.data.packing import Role
    from letheon.objective.methods import Coefficients

    OnTokens = Callable[[Tensor, Tokens], Tensor]
    """A loss of the label log-probabilities (A,) of one role."""


@dataclass(frozen=True, slots=True)
class Term:
    """One weighted part of a loss."""

    name: str
    role: Role
    weight: float
    loss: Callable[[TokenValues, Roles], Tensor]
    """The term's value on a batch, from the tokens of its role (and of others, where it compares them)."""
    needs: Needs = field(default_factory=Needs)
    splits: bool = True
    """Whether a step may be computed in pieces."""
    reads_reference: bool = False
    """Whether the loss reads the reference's log-probabilities of the answers."""


def compose(
    terms: tuple[Term, ...], values: TokenValues, roles: Roles, *, factors: Mapping[str, float] | None = None
) -> Loss:
    """Return the weighted sum of `terms`, at least one, over one batch; `factors` multiply their weights by name."""
    import torch  # here, so that methods are listed without it

    parts: dict[str, Tensor | None] = {}
    weighted: list[Tensor] = []
    for term in terms:
        part = term.loss(values, roles)
        weighted.append(term.weight * (factors or {}).get(term.name, 1.0) * part)
        parts[term.name] = part if tokens_of(roles, term.role).counts.tokens else None
    return Loss(total=torch.stack(weighted).sum(), parts=parts)


def tokens_of(roles: Roles, role: Role) -> Tokens:
    """Return the tokens of one role."""
    tokens: Tokens = getattr(roles, role)
    return tokens


def needs_of(terms: tuple[Term, ...]) -> Needs:
    """Return what `terms` need together.

    Raises:
        ValueError: they need KLs of two directions or the states of two layers, of which a batch gives one.
    """
    directions = {t.needs.kl for t in terms if t.needs.kl}
    layers = {t.needs.activations for t in terms if t.needs.activations is not None}
    for what, found in (("one direction of the KL", directions), ("the states of one layer", layers)):
        if len(found) > 1:
            names = ", ".join(t.name for t in terms if {t.needs.kl, t.needs.activations} & found)
            raise ValueError(
                f"expected terms that need at most {what}, got {', '.join(map(str, sorted(found)))} ({names}); "
                "declare them as methods of their own"
            )
    return Needs(
        kl=next(iter(directions), None),
        forget_logits=any(t.needs.forget_logits for t in terms),
        reference_logits=any(t.needs.reference_logits for t in terms),
        activations=next(iter(layers), None),
        general_kl=any(t.needs.general_kl for t in terms),
        run_losses=any(t.needs.run_losses for t in terms),
    )


def terms_on(role: Role, name: str, weight: float, loss: OnTokens) -> tuple[Term, ...]:
    """Return a loss of the log-probabilities of one role; nothing for weight 0."""

    def value(values: TokenValues, roles: Roles) -> Tensor:
        tokens = tokens_of(roles, role)
        return loss(values.log_probs[tokens.index], tokens)

    return (Term(name, role, weight, value),) if weight else ()


def ga_terms(weight: float = 1.0) -> tuple[Term, ...]:
    """Return gradient ascent; nothing for weight 0."""
    return terms_on("forget", "ga", weight, forget.gradient_ascent)


def nll_terms(weight: float) -> tuple[Term, ...]:
    """Return the retain NLL; nothing for weight 0."""
    return terms_on("retain", "retain_nll", weight, retain.nll)


def kl_terms(weight: float, kind: str = "forward") -> tuple[Term, ...]:
    """Return the retain KL, forward, reverse or of the gold tokens alone; nothing for weight 0."""
    if weight == 0:
        return ()
    if kind == "gold":
        return (Term("retain_kl", "retain", weight, _gold_kl, reads_reference=True),)
    needs = Needs(kl=cast("Literal['forward', 'reverse']", kind))
    return (Term("retain_kl", "retain", weight, _full_kl, needs=needs),)


def _gold_kl(values: TokenValues, roles: Roles) -> Tensor:
    index = roles.retain.index
    return retain.gold_kl(values.log_probs[index], values.reference_log_probs[index], roles.retain)


def _full_kl(values: TokenValues, roles: Roles) -> Tensor:
    assert values.kl is not None
    return retain.mean_kl(values.kl, roles.retain)


def general_terms(weight: float) -> tuple[Term, ...]:
    """Return the forward KL on general tokens, with a denominator of its own; nothing for weight 0."""

    def value(values: TokenValues, roles: Roles) -> Tensor:
        assert values.general_kl is not None
        return retain.mean_kl(values.general_kl, roles.general)

    return (Term("general_kl", "general", weight, value, needs=Needs(general_kl=True)),) if weight else ()


def instead_terms(weight: float) -> tuple[Term, ...]:
    """Return the NLL of other answers to the forget prompts; nothing for weight 0."""
    return terms_on("alternative", "instead_nll", weight, retain.nll)


def npo_terms(c: Coefficients, *, weight: float = 1.0, dialect: str | None = None) -> tuple[Term, ...]:
    """Return NPO in the dialect of the coefficient `npo`, or in the one given."""
    beta, chosen = c.number("beta"), dialect or c.choice("npo")
    if chosen == "logits":

        def of_logits(values: TokenValues, roles: Roles) -> Tensor:
            assert values.logits is not None
            assert values.reference_logits is not None
            return forget.npo_logits(values.logits, values.reference_logits, roles.forget, beta=beta)

        needs = Needs(forget_logits=True, reference_logits=True)
        return (Term("npo", "forget", weight, of_logits, needs=needs),)
    loss = {"token": forget.npo_token, "sequence": forget.npo_sequence, "batch": forget.npo_batch}[chosen]

    def value(values: TokenValues, roles: Roles) -> Tensor:
        tokens = roles.forget
        policy, reference = values.log_probs[tokens.index], values.reference_log_probs[tokens.index]
        return loss(policy, reference, tokens, beta=beta)

    return (Term("npo", "forget", weight, value, splits=chosen != "batch", reads_reference=True),)


def dpo_terms(c: Coefficients) -> tuple[Term, ...]:
    """Return DPO of the alternatives over the forget rows."""

    def value(values: TokenValues, roles: Roles) -> Tensor:
        """Return DPO's loss (scalar) of a step: its alternatives are chosen, its forget rows rejected."""
        chosen, rejected = roles.alternative, roles.forget
        return preference.dpo(
            values.log_probs[chosen.index],
            values.reference_log_probs[chosen.index],
            chosen,
            values.log_probs[rejected.index],
            values.reference_log_probs[rejected.index],
            rejected,
            beta=c.number("beta"),
        )

    return (Term("dpo", "forget", 1.0, value, splits=False, reads_reference=True),)


def undial_terms(c: Coefficients) -> tuple[Term, ...]:
    """Return UNDIAL's distillation."""

    def value(values: TokenValues, roles: Roles) -> Tensor:
        assert values.logits is not None
        assert values.reference_logits is not None
        labels = values.labels[roles.forget.index]
        return forget.undial(values.logits, values.reference_logits, labels, roles.forget, beta=c.number("beta"))

    return (Term("undial", "forget", 1.0, value, needs=Needs(forget_logits=True, reference_logits=True)),)


def ce_u_terms(_: Coefficients) -> tuple[Term, ...]:
    """Return CE-U's cross-entropy."""

    def value(values: TokenValues, roles: Roles) -> Tensor:
        assert values.logits is not None
        return forget.ce_u(values.logits, values.labels[roles.forget.index], roles.forget)

    return (Term("ce_u", "forget", 1.0, value, needs=Needs(forget_logits=True)),)


def flattening_terms(_: Coefficients) -> tuple[Term, ...]:
    """Return PDU's logit-margin flattening."""

    def value(values: TokenValues, roles: Roles) -> Tensor:
        assert values.logits is not None
        return forget.margin_flattening(values.logits, roles.forget)

    return (Term("flattening", "forget", 1.0, value, needs=Needs(forget_logits=True)),)


def transport_terms(weight: float) -> tuple[Term, ...]:
    """Return the transport of the forget rows' losses to those that the reference gives the general rows."""

    def value(values: TokenValues, roles: Roles) -> Tensor:
        run = values.run_losses
        assert run is not None
        targets = quantile.transported(run.forget, run.general)
        own = targets[run.row_index.clamp_max(len(targets) - 1)]  # of other roles any will do
        return quantile.transport(values.log_probs[roles.forget.index], own, roles.forget)

    return (Term("transport", "forget", weight, value, needs=Needs(run_losses=True)),)


def rmu_terms(c: Coefficients, *, adaptive: bool) -> tuple[Term, ...]:
    """Return RMU's two terms on the states after a layer; `adaptive` measures lengths by the reference's."""
    needs = Needs(activations=int(c.number("layer")))

    def away(values: TokenValues, roles: Roles) -> Tensor:
        assert values.activations is not None
        assert values.reference_norm is not None
        states = values.activations[roles.forget.index]
        direction = _direction(states.shape[-1], c.seed, states.device)
        length = c.number("scale") * (values.reference_norm if adaptive else 1.0)
        return activation.rmu_forget(states, direction, roles.forget, scale=length)

    def near(values: TokenValues, roles: Roles) -> Tensor:
        assert values.activations is not None
        assert values.reference_activations is not None
        states = values.activations[roles.retain.index]
        return activation.rmu_retain(states, values.reference_activations, roles.retain)

    weight = c.number("retain_weight")
    kept = (Term("rmu_retain", "retain", weight, near, needs=needs),) if weight else ()
    return (Term("rmu_forget", "forget", 1.0, away, needs=needs), *kept)


@cache
def _direction(width: int, seed: int, device: torch.device) -> Tensor:
    """RMU's direction on a device, where it is brought once and not in every step."""
    return activation.random_direction(width, seed=seed).to(device)
