"""Batches of answer tokens for the tests of losses, packed as ours and padded as others have them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from letheon.data.packing import pack
from letheon.data.sequences import TokenSequence
from letheon.objective.values import Counts, Tokens, roles_of

VOCABULARY = 13
IGNORED = -100


def tokens(*lengths: int, has_role: tuple[bool, ...] | None = None) -> Tokens:
    """Tokens of a batch whose sequences have the given numbers of answer tokens of the role."""
    owner = [s for s, length in enumerate(lengths) for _ in range(length)]
    roles = has_role or tuple(length > 0 for length in lengths)
    return Tokens(
        index=torch.arange(len(owner)),
        owner=torch.tensor(owner, dtype=torch.int64),
        sequences=torch.tensor([s for s, has_it in enumerate(roles) if has_it], dtype=torch.int64),
        num_sequences=len(roles),
        counts=Counts(tokens=len(owner), sequences=sum(roles)),
    )


@dataclass(frozen=True)
class Answers:
    """What policy and reference say at the answer tokens of sequences of the given `lengths`."""

    lengths: tuple[int, ...]
    logits: Tensor
    reference_logits: Tensor
    labels: Tensor

    @property
    def log_probs(self) -> Tensor:
        return self.logits.log_softmax(-1).gather(-1, self.labels[:, None])[:, 0]

    @property
    def reference_log_probs(self) -> Tensor:
        return self.reference_logits.log_softmax(-1).gather(-1, self.labels[:, None])[:, 0]

    @property
    def tokens(self) -> Tokens:
        return tokens(*self.lengths)

    def of(self, *sequences: int) -> "Answers":
        """The given sequences, in the given order."""
        starts = [sum(self.lengths[:s]) for s in sequences]
        rows = [start + t for start, s in zip(starts, sequences, strict=True) for t in range(self.lengths[s])]
        return Answers(
            lengths=tuple(self.lengths[s] for s in sequences),
            logits=self.logits[rows],
            reference_logits=self.reference_logits[rows],
            labels=self.labels[rows],
        )

    def scaled(self, factor: float) -> "Answers":
        """The same with logits `factor` times as large, as leaves for gradients."""
        return replace(self, logits=(self.logits * factor).requires_grad_())


def random_answers(*lengths: int, seed: int = 0) -> Answers:
    """Answers with logits that spread over a few nats, those of the policy a leaf for gradients."""
    generator = torch.Generator().manual_seed(seed)
    num = sum(lengths)
    return Answers(
        lengths=lengths,
        logits=(2 * torch.randn(num, VOCABULARY, generator=generator)).requires_grad_(),
        reference_logits=2 * torch.randn(num, VOCABULARY, generator=generator),
        labels=torch.randint(VOCABULARY, (num,), generator=generator),
    )


@dataclass(frozen=True)
class Layouts:
    """One batch in both layouts; the logits at prompts, padding and the other role are arbitrary."""

    answers: Answers
    """At the tokens of the role, found by `pack` and `roles_of`."""
    role: Tokens
    """Whose they are."""
    padded: list[Answers]
    """Each sequence of the role by itself, found by shifting padded labels and dropping the ignored ones."""


def both_layouts(role: str, *, seed: int = 0) -> Layouts:
    """A batch of four sequences, the second and third of the role ("forget" or "retain"), with prompts of 1 to 3."""
    generator = torch.Generator().manual_seed(seed)
    prompts, lengths, chosen = [2, 1, 3, 2], [3, 2, 5, 1], [1, 2]
    ids = [
        torch.randint(VOCABULARY, (p + n,), generator=generator).tolist() for p, n in zip(prompts, lengths, strict=True)
    ]
    wide = max(len(row) for row in ids)
    logits, reference = (2 * torch.randn(2, len(ids), wide, VOCABULARY, generator=generator)).unbind(0)
    padded = []
    for s in chosen:
        labels = torch.tensor([IGNORED] * prompts[s] + ids[s][prompts[s] :] + [IGNORED] * (wide - len(ids[s])))[1:]
        kept = labels != IGNORED
        padded.append(Answers((lengths[s],), logits[s, :-1][kept], reference[s, :-1][kept], labels[kept]))
    batch = pack(
        [TokenSequence(input_ids=tuple(row), answer_start=p) for row, p in zip(ids, prompts, strict=True)],
        is_forget=[(s in chosen) == (role == "forget") for s in range(len(ids))],
        row_index=range(len(ids)),
    )
    roles = roles_of(batch)
    found = roles.forget if role == "forget" else roles.retain
    rows = batch.answer_positions[found.index]
    flat, flat_reference = (torch.cat([x[s, : len(row)] for s, row in enumerate(ids)]) for x in (logits, reference))
    answers = Answers((2, 5), flat[rows], flat_reference[rows], batch.labels[found.index])
    return Layouts(answers=answers, role=found, padded=padded)


def check_that_pieces_add_up(loss: Callable[[Answers, Tokens], Tensor]) -> None:
    """Loss and gradient of a batch are the sums of those of its pieces with the counts of the whole."""
    answers = random_answers(3, 1, 4, 2)
    whole = loss(answers, answers.tokens)
    (expected,) = torch.autograd.grad(whole, answers.logits)
    pieces = [answers.of(*part) for part in ((0, 2), (1,), (3,))]
    total = torch.stack([loss(p, replace(p.tokens, counts=answers.tokens.counts)) for p in pieces]).sum()
    (gradient,) = torch.autograd.grad(total, answers.logits)
    assert total.item() == pytest.approx(whole.item(), rel=1e-5)
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-7)
