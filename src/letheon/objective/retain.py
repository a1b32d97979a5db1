"""Losses on the retain rows. All in nats, minimised."""

from torch import Tensor

from letheon.objective.values import Tokens


def nll(log_probs: Tensor, tokens: Tokens) -> Tensor:
    """L_RT = - mean log p_t over retain answer tokens (arXiv 2503.13690, Eq. 3); range [0, inf), 0 if there are none.

    `log_probs` (A,) float32; gives a scalar. Serves any answers to be learned, whatever their role: random or refusing
    answers to forget prompts (STAT; Yao et al. 2023), or the forget rows themselves for a task vector.
    """
    return -tokens.mean(log_probs)


def nll_by_sequence(log_probs: Tensor, tokens: Tokens) -> Tensor:
    """Mean over sequences of - (1/L) sum_t log p_t; range [0, inf), 0 if there are none.

    The retain term of SUGD (AILS-NTUA, arXiv 2503.02443): a short answer weighs as much as a long one. `log_probs` (A,)
    float32 at retain tokens; gives a scalar.
    """
    return -tokens.mean_over_sequences(tokens.sequence_means(log_probs))


def mean_kl(kl: Tensor, tokens: Tokens) -> Tensor:
    """K_RT = mean of the per-position divergence over retain answer positions (arXiv 2503.13690, Eq. 4).

    `kl` (A,) float32 at retain tokens; gives a scalar, 0 if there are none.
    """
    return tokens.mean(kl)


def gold_kl(log_probs: Tensor, reference_log_probs: Tensor, tokens: Tokens) -> Tensor:
    """Mean of q_t (log q_t - log p_t) over the gold tokens only.

    What Atyaephyra's released code computes in place of K_RT. It can be negative and is not a divergence; offered to
    reproduce their tables. Both inputs (A,) float32 at retain tokens; gives a scalar, 0 if there are none.
    """
    return tokens.mean(reference_log_probs.exp() * (reference_log_probs - log_probs))
