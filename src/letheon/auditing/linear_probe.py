"""Linear probe: can the next token of an answer be read from the states of a layer, though the model does not say it?

At each answer token of rows to keep, a probe learns to map the state that comes before it to the head's vector of the
token, by ridge regression after the first n layers:

    W = argmin sum over tokens |e(y) - W s|^2 + penalty |W|^2

It is then asked of the forget rows, none of which it was trained on. A row's value is the share of other tokens, drawn
from the answers of other documents, that W s points to less than to the true token, mean over the answer. A probe that
finds nothing gives .5; what comes of grammar and form the placebo rows tell.

This is reported and never counts. A state can hold what the model never uses, and how well states tell tokens apart
depends on all that a model was trained on: of two models that never saw the rows, the one that learned more other rows
is read better, by more than the margin of a verdict.

Probes are from Alain and Bengio 2017 (arXiv 1610.01644), such maps to next tokens from Belrose et al. 2023
(arXiv 2303.08112), as an audit of unlearning from Lynch et al. 2024 (arXiv 2402.16835). Hewitt and Liang 2019
(arXiv 1909.03368) compare with a probe of control labels: the notes say what one gives that was trained on tokens in
random order.

Differs from these: a closed form in place of gradient descent, and tokens are compared with those of other answers
alone, so that frequent ones gain nothing. Control labels are the tokens in random order, not one random label for every
type of word.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from letheon.auditing.attack import Attack, Given, Knowledge, Point, Subject
from letheon.auditing.extraction import answer_sequence
from letheon.auditing.logit_lens import depths_of, first_layers
from letheon.auditing.rows import documents_of
from letheon.data.rows import Row
from letheon.data.sequences import TokenSequence
from letheon.evaluation.batches import StepProgress, length_batches, padded, reading
from letheon.model.layers import trunk_of
from letheon.processes import shared
from letheon.progress import Progressed

FEWEST_ROWS = 20
"""Rows to keep without which a probe is not trained."""
NUM_OTHERS = 64
"""Tokens of other answers that the true one is compared with."""
PENALTY = 0.01
"""On the squares of W, for each token trained on and states of deviation 1."""
_ROWS_AT_ONCE = 32
_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Asked:
    """The answer tokens of the rows that are asked, and what each is compared with."""

    counts: tuple[int, ...]
    """(R,) tokens of each row's answer."""
    labels: Tensor
    """(T,) the true tokens."""
    others: Tensor
    """(T, N) tokens of the answers of other documents; the true token itself where one is drawn, which is a tie."""


def attack(subject: Subject, rows: Sequence[Row], tell: Progressed) -> Knowledge:
    """Train a probe after some of the layers on rows to keep, and return how well it reads answers of other rows."""
    trained, sequences = ([answer_sequence(subject, row) for row in of] for of in (subject.given.retain, rows))
    labels = _labels(trained)
    asked = asked_tokens(rows, sequences, seed=subject.seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(subject.seed))
    vectors = _vectors(subject.model)

    def read_after(depth: int) -> tuple[Point, str]:
        tell_depth = partial(tell, f"reading after layer {depth}")
        with first_layers(subject.model, depth):
            known, judged = (answer_states(subject.model, of, tell_depth) for of in (trained, sequences))
        values = read_by_probe(known, vectors[labels], judged, asked, vectors)
        control = read_by_probe(known, vectors[labels[order]], judged, asked, vectors)
        return Point(depth, values, label=f"layer {depth}"), f"{sum(control) / max(1, len(control)):.2f}"

    points, in_random_order = zip(*shared(depths_of(subject.model), read_after), strict=True)
    note = f"probes trained on tokens in random order give, layer by layer: {', '.join(in_random_order)}"
    return Knowledge(tuple(range(len(rows))), points, (note,))


def asked_tokens(rows: Sequence[Row], sequences: Sequence[TokenSequence], *, seed: int) -> Asked:
    """Return the answer tokens of `sequences` with `NUM_OTHERS` drawn tokens each, as often as answers have them."""
    labels = _labels(sequences)
    counts = torch.tensor([sequence.num_answer_tokens for sequence in sequences])
    documents = torch.from_numpy(documents_of(rows)).repeat_interleave(counts)
    draw = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(labels), (len(labels), NUM_OTHERS), generator=draw)
    is_own = documents[drawn] == documents[:, None]
    return Asked(tuple(counts.tolist()), labels, torch.where(is_own, labels[:, None], labels[drawn]))


@torch.no_grad()
def answer_states(model: PreTrainedModel, sequences: Sequence[TokenSequence], progress: StepProgress) -> Tensor:
    """Return (T, D) float32 the last states before each answer token, those of one sequence after those of another."""
    found: dict[int, Tensor] = {}
    with reading(model) as plain:
        lengths = [len(sequence.input_ids) for sequence in sequences]
        for batch in length_batches(lengths, max_rows=_ROWS_AT_ONCE, max_tokens=_BATCH_TOKENS):
            ids, _ = padded([sequences[index].input_ids for index in batch], side="right", device=plain.device)
            states = cast("Any", trunk_of(plain))(input_ids=ids, use_cache=False).last_hidden_state
            for place, index in enumerate(batch):
                before = slice(sequences[index].answer_start - 1, lengths[index] - 1)
                found[index] = states[place, before].float().cpu()
            progress(len(found), len(sequences))
    return torch.cat([found[index] for index in range(len(sequences))])


def read_by_probe(known: Tensor, targets: Tensor, judged: Tensor, asked: Asked, vectors: Tensor) -> tuple[float, ...]:
    """Return (R,) the share of other tokens that a probe points to less than to the true one, ties counting half.

    The probe is trained on `known` states (S, D) and `targets` (S, D), and asked of `judged` states (T, D); `vectors`
    (V, D) are those of all tokens.
    """
    centre, width = known.mean(0), known.std(0).clamp_min(1e-6)
    states, mean = (known - centre) / width, targets.mean(0)
    gram = states.T @ states + PENALTY * len(states) * torch.eye(states.shape[1])
    weights = torch.linalg.solve(gram, states.T @ (targets - mean))
    used, place = torch.cat([asked.labels[:, None], asked.others], dim=1).unique(return_inverse=True)
    scores = (((judged - centre) / width) @ weights) @ (vectors[used] - mean).T
    true, *others = scores.gather(1, place).split([1, NUM_OTHERS], dim=1)
    wins = (true > others[0]).float() + 0.5 * (true == others[0]).float()
    return tuple(float(part.mean()) for part in wins.mean(1).split(list(asked.counts)))


def _labels(sequences: Sequence[TokenSequence]) -> Tensor:
    return torch.tensor([label for sequence in sequences for label in sequence.labels])


def _vectors(model: PreTrainedModel) -> Tensor:
    """(V, D) the head's vectors of length 1, on the CPU."""
    head = model.get_output_embeddings()
    assert head is not None, "a causal language model has a head"
    weight: Tensor = head.weight
    return torch.nn.functional.normalize(weight.detach().float().cpu(), dim=-1)


def _needs(given: Given) -> str | None:
    if len(given.retain) >= FEWEST_ROWS:
        return None
    return f"a probe is trained on at least {FEWEST_ROWS} rows to keep, there are {len(given.retain)}"


ATTACKS = (
    Attack(
        name="linear-probe",
        title="Linear probe, answers in the states",
        source="Lynch et al. 2024, arXiv 2402.16835; Hewitt and Liang 2019, arXiv 1909.03368",
        unit="layers",
        run=attack,
        needs=_needs,
        measure="own",
        passes=4.2,
        counts=False,
        is_default=False,
    ),
)
