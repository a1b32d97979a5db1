"""Losses on pairs of answers to one prompt: one to prefer, one to forget. Minimised, in nats."""

from torch import Tensor
from torch.nn.functional import softplus

from letheon.objective.values import Tokens


def dpo(  # noqa: PLR0917  (the same three values of either side)
    chosen_log_probs: Tensor,
    chosen_reference: Tensor,
    chosen_tokens: Tokens,
    rejected_log_probs: Tensor,
    rejected_reference: Tensor,
    rejected_tokens: Tokens,
    *,
    beta: float,
) -> Tensor:
    """DPO as unlearning uses it: (2/beta) mean over pairs of softplus(-beta (r_chosen - r_rejected)).

    r = sum_t (log p_t - log q_t) of an answer. The loss of IdkDPO, whose chosen answer is a refusal (TOFU, arXiv
    2401.06121), and of AltPO, whose chosen answer the model made up itself (arXiv 2409.13474). The k-th chosen sequence
    of the batch pairs with its k-th rejected (forget) sequence, so a piece of a step must hold whole pairs; lengths may
    differ. Each `log_probs` and `reference` is (A,) float32 at the tokens of its role. Gives a scalar in (0, inf), 0
    for a step without pairs; (2/beta) ln 2 at the reference, where the gradient is -1 / pairs at every chosen token and
    1 / pairs at every rejected one.

    Differs from DPO proper (arXiv 2305.18290) by the factor 2/beta, which makes it NPO if r_chosen = 0.
    """
    assert chosen_tokens.counts.sequences == rejected_tokens.counts.sequences, "a step of unequal sides"
    chosen = _log_ratios(chosen_log_probs, chosen_reference, chosen_tokens)
    rejected = _log_ratios(rejected_log_probs, rejected_reference, rejected_tokens)
    assert chosen.shape == rejected.shape, "a piece of a step of unequal sides"
    losses = softplus(-beta * (chosen - rejected)) * (2 / beta)
    return losses.sum() / max(rejected_tokens.counts.sequences, 1)


def _log_ratios(log_probs: Tensor, reference: Tensor, tokens: Tokens) -> Tensor:
    """Return r of the sequences of the role, in the order of the batch."""
    return tokens.per_sequence(log_probs - reference)[tokens.sequences]
