"""Losses on the forget rows: pure functions, minimised, in nats.

Shapes: A forget answer tokens, S sequences of the batch. Every function takes the values at forget tokens only and a
`Tokens` that says whose they are, and gives a scalar float32; a step without forget rows gives 0.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from letheon.objective.values import Tokens


def gradient_ascent(log_probs: Tensor, tokens: Tokens) -> Tensor:
    """L_GA = mean log p_t over forget answer tokens (MATH: seed system A; the loss that gradient ascent descends).

    `log_probs` (A,) float32. Range (-inf, 0]; lower is more forgotten. Unbounded below, so it can wreck the model.
    """
    return tokens.mean(log_probs)


def gradient_ascent_by_sequence(log_probs: Tensor, tokens: Tokens) -> Tensor:
    """L_GA' = mean over sequences of (1/L) sum_t log p_t (MATH: seed system B), so that every row weighs the same.

    The forget term of NEKO and of SUGD (AILS-NTUA, arXiv 2503.02443). `log_probs` (A,) float32. Range (-inf, 0]; lower
    is more forgotten. Unbounded below.
    """
    return tokens.mean_over_sequences(tokens.sequence_means(log_probs))


def npo_token(log_probs: Tensor, reference_log_probs: Tensor, tokens: Tokens, *, beta: float) -> Tensor:
    """NPO with the ratio taken token by token: (2/beta) mean_t softplus(beta (log p_t - log q_t)).

    The form that the code of Atyaephyra (arXiv 2503.13690) computes. Both inputs (A,) float32. Range (0, inf);
    (2/beta) ln 2 at the reference, where its gradient equals that of gradient ascent for every beta > 0.
    """
    return tokens.mean(softplus(beta * (log_probs - reference_log_probs))) * (2 / beta)


def npo_sequence(log_probs: Tensor, reference_log_probs: Tensor, tokens: Tokens, *, beta: float) -> Tensor:
    """NPO: (2/beta) mean over sequences of softplus(beta r), r = sum_t (log p_t - log q_t).

    Zhang et al. 2024, Eq. 3. Both inputs (A,) float32. Range (0, inf); (2/beta) ln 2 at the reference.
    """
    ratio = tokens.per_sequence(log_probs - reference_log_probs)
    return tokens.mean_over_sequences(softplus(beta * ratio)) * (2 / beta)


def npo_batch(log_probs: Tensor, reference_log_probs: Tensor, tokens: Tokens, *, beta: float) -> Tensor:
    """NPO with one ratio for the batch: (2/beta) softplus(beta r), r = mean of log p_t - log q_t over its tokens.

    The form of ZJUKLAB's system (SemEval-2025 Task 4). Both inputs (A,) float32; 0 if the step has no forget token.
    Not a mean of per-row terms, so a step cannot be computed in pieces.
    """
    if tokens.counts.tokens == 0:
        return log_probs.sum()
    return softplus(beta * tokens.mean(log_probs - reference_log_probs)) * (2 / beta)


def npo_logits(logits: Tensor, reference_logits: Tensor, tokens: Tokens, *, beta: float) -> Tensor:
    """(2/beta) mean over positions and vocabulary of softplus(beta (z - z_ref)), z raw logits.

    What MUSE's published code computes, restricted to answer positions (theirs takes every position). Logits are not
    log-probabilities and the label plays no part, so this is not NPO and is offered only to reproduce it. Both inputs
    (A, V) float32.
    """
    return tokens.mean(softplus(beta * (logits - reference_logits)).mean(-1)) * (2 / beta)


def simnpo(log_probs: Tensor, tokens: Tokens, *, beta: float, margin: float) -> Tensor:
    """SimNPO: (2/beta) mean over sequences of softplus(beta s / L + margin), s = sum_t log p_t, without a reference.

    Fan et al. 2024, arXiv 2410.07163; `margin` is its gamma. `log_probs` (A,) float32. Range (0, inf), at most
    (2/beta) softplus(margin) since s <= 0.

    Differs from the published code and open-unlearning, where the margin is multiplied by beta: margin = beta * theirs.
    """
    return tokens.mean_over_sequences(softplus(beta * tokens.sequence_means(log_probs) + margin)) * (2 / beta)


def wga(log_probs: Tensor, tokens: Tokens, *, beta: float) -> Tensor:
    """Weighted gradient ascent: mean_t sg(p_t^beta) log p_t, sg without gradient; gradient ascent at beta = 0.

    Wang et al. 2025, arXiv 2502.19301. `log_probs` (A,) float32. Range [-1 / (e beta), 0]. The value falls and rises
    again as p goes to 0, while its gradient p^beta keeps pushing p down ever more weakly: read the gradient, not it.
    """
    weights = torch.exp(beta * log_probs.detach())
    return tokens.mean(weights * log_probs)


def satimp(log_probs: Tensor, tokens: Tokens, *, beta1: float, beta2: float) -> Tensor:
    """SatImp: mean_t sg(p_t^beta1 (1 - p_t)^beta2) log p_t, sg without gradient; WGA at beta2 = 0.

    Yang et al. 2025, arXiv 2505.11953. `log_probs` (A,) float32, `beta2` >= 0. Range (-1, 0] for beta1, beta2 >= 1.
    Tokens that are certain (p = 1) are left alone like those that are forgotten.
    """
    constant = log_probs.detach()
    # A label's log-probability can round to just above 0, and a negative number has no fractional power.
    doubt = (-torch.expm1(constant)).clamp_min(0)
    return tokens.mean(torch.exp(beta1 * constant) * doubt**beta2 * log_probs)


def undial(logits: Tensor, reference_logits: Tensor, labels: Tensor, tokens: Tokens, *, beta: float) -> Tensor:
    """UNDIAL: mean_t of the policy's cross-entropy to softmax(z_ref - beta onehot(y_t)).

    Dong et al. 2024, arXiv 2402.10052: distillation from a reference that doubts the label. `logits` and
    `reference_logits` (A, V) float32, `labels` (A,) int64. Range [0, inf); least at the lowered reference, where it is
    that one's entropy and its gradient is 0, so it cannot run away.

    Differs from open-unlearning, whose mean takes prompt and padding positions in.
    """
    chosen = labels[:, None]
    lowered = reference_logits.scatter(-1, chosen, reference_logits.gather(-1, chosen) - beta)
    return tokens.mean(cross_entropy(logits, lowered.softmax(-1), reduction="none"))


def ce_u(logits: Tensor, labels: Tensor, tokens: Tokens) -> Tensor:
    """CE-U: mean_t of the cross-entropy of the policy to sg softmax(z with z_y = -inf), itself without the label.

    Yang 2025, arXiv 2503.01224. `logits` (A, V) float32, V >= 2, `labels` (A,) int64. Range [0, inf). At each
    token its gradient in z_y is p_y: bounded, and 0 once the label is forgotten.

    Differs from the published runs, which leave the first token of each answer out.
    """
    without_label = logits.detach().scatter(-1, labels[:, None], float("-inf"))
    return tokens.mean(cross_entropy(logits, without_label.softmax(-1), reduction="none"))


def margin_flattening(logits: Tensor, tokens: Tokens) -> Tensor:
    """Logit-margin flattening: mean_t (max_v z - mean_v z)^2, which is 0 only where every token is equally likely.

    The forget loss of PDU (Entesari et al. 2025, arXiv 2506.05314). `logits` (A, V) float32. Range [0, inf), in squared
    logits rather than nats: hundreds at a confident model, so it wants a retain weight of 50 to 100. The label plays no
    part.

    Differs from open-unlearning's, which masks by labels that are not shifted: of each answer the place that predicts
    the first token is left out and the one after the last is taken in (commit fdeb28f). In another version (commit
    17e8e73) the mean takes in prompt and padding.
    """
    return tokens.mean((logits.amax(-1) - logits.mean(-1)).square())
