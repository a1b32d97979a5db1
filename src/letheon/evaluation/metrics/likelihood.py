"""How likely a model finds given answers: one pass gives every score that is made of the same logits.

Answers to one question share its tokens: they follow it side by side in one row, each seeing the question and itself.
Answers of the same tokens whose labels begin elsewhere are read once.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from letheon.engine.patches.rotation import changes_rotation
from letheon.evaluation.batches import StepProgress, reading
from letheon.evaluation.templates import LabelledSequence
from letheon.processes import shared

PACK_TOKENS = 512
"""Most tokens of one packed row; attention costs its square."""
MAX_LOGITS = 2**27
"""Logits that one pass may hold: 0.5 GiB in float32."""
_MIN_VARIANCE = 1e-6
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""In nats, between a label's log-probability in a packed row and alone; 16-bit dtypes round a hundred times coarser."""
_COARSE = 0.5


@dataclass(frozen=True, slots=True)
class AnswerLikelihood:
    """What a model thinks of the L labels of one answer, the end of sequence the last of them."""

    loss: float
    """-1/L sum log p, in nats a label, summed in float32; NaN without labels."""
    probability: float
    """exp(-loss), 0 to 1."""
    log_probs: tuple[float, ...] = ()
    """(L - 1,) of the labels but the last; empty unless asked for, like the next two."""
    hits: tuple[bool, ...] = ()
    """(L - 1,) whether the label is the likeliest token."""
    normed: tuple[float, ...] = ()
    """(L - 1,) (log p - mean) / deviation, both of log p over the vocabulary under p; the variance at least 1e-6."""


@dataclass(frozen=True, slots=True)
class AskedAnswers:
    """One question with several answers, as tokens."""

    sequences: tuple[LabelledSequence, ...]
    in_detail: int = 0
    """Of how many of the answers, the first, everything is wanted and not the loss alone."""


def likelihoods(
    model: PreTrainedModel,
    asked: Sequence[AskedAnswers],
    *,
    padding: int | None,
    batch_size: int = 32,
    exact: bool = False,
    progress: StepProgress | None = None,
) -> list[tuple[AnswerLikelihood, ...]]:
    """Return what `model` thinks of each answer, in the order of `asked`; softmax in float32.

    Tokens equal to `padding` are hidden from attention wherever they stand, as in open-unlearning; with None nothing
    is. Answers are packed unless `exact`, or unless the model's own padded batches give other values on the first of
    them; then `batch_size` sequences make a padded batch.
    """
    flat = [(q, a) for q, one in enumerate(asked) for a in range(len(one.sequences))]
    found: dict[tuple[int, int], AnswerLikelihood] = {}
    with reading(model) as plain_model:
        reader = _Reader(plain_model, padding)
        packs = list(_packs(asked, reader.max_labels)) if not exact and reader.may_pack(asked) else []
        if packs and not reader.agrees([asked[i] for i in _probe(packs, asked)]):
            packs = []

        def packed(pack: list[int]) -> list[AnswerLikelihood]:
            return list(reader.packed([asked[i] for i in pack]))

        def padded(batch: list[tuple[int, int]]) -> list[AnswerLikelihood]:
            return list(reader.padded([_one(asked[q], a) for q, a in batch]))

        places = [_places(pack, asked) for pack in packs] or _batches(flat, asked, batch_size)
        counts = list(map(len, places))
        if packs:
            values = shared(packs, packed, counts=counts, progress=progress)
        else:
            values = shared(places, padded, counts=counts, progress=progress)
        for batch, of_batch in zip(places, values, strict=True):
            found |= dict(zip(batch, of_batch, strict=True))
    return [tuple(found[q, a] for a in range(len(one.sequences))) for q, one in enumerate(asked)]


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer by itself."""

    sequence: LabelledSequence
    in_detail: bool


def _one(asked: AskedAnswers, index: int) -> _Answer:
    return _Answer(asked.sequences[index], index < asked.in_detail)


@dataclass(frozen=True, slots=True)
class _Reader:
    """A model that is read, in packed rows or in padded batches."""

    model: PreTrainedModel
    padding_id: int | None

    @property
    def max_labels(self) -> int:
        """Positions whose logits fit into one pass."""
        return max(1, MAX_LOGITS // int(self.model.config.get_text_config().vocab_size))

    def may_pack(self, asked: Sequence[AskedAnswers]) -> bool:
        """Whether the model's attention can be told by a mask who sees whom, at these lengths."""
        config: Any = self.model.config.get_text_config()
        lengths = [len(sequence.ids) for one in asked for sequence in one.sequences]
        windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        fits = all(not isinstance(window, int) or max(lengths, default=0) <= window for window in windows)
        kind = getattr(config, "_attn_implementation", None)
        return fits and kind in ("sdpa", "eager") and not changes_rotation(self.model.config, lengths)

    def agrees(self, asked: Sequence[AskedAnswers]) -> bool:
        """Whether packed rows give what padded batches give."""
        answers = [_one(one, index) for one in asked for index in range(len(one.sequences))]
        try:
            packed = self.packed(asked)
        except (
            TypeError,
            ValueError,
            RuntimeError,
            IndexError,
        ):  # a model that takes no mask of its own, or no positions
            return False
        tolerance = _TOLERANCE.get(self.model.dtype, _COARSE)
        padded = [found for i in range(0, len(answers), 8) for found in self.padded(answers[i : i + 8])]
        return all(abs(a.loss - b.loss) <= tolerance or a.loss != a.loss for a, b in zip(packed, padded, strict=True))

    def packed(self, asked: Sequence[AskedAnswers]) -> list[AnswerLikelihood]:
        """Return the likelihoods of all answers of a pack, question by question."""
        device = self.model.device
        row = _row_of(asked)
        segment, branch = (torch.tensor(values, device=device) for values in (row.segments, row.branches))
        ids = torch.tensor([row.ids], device=device)
        order = torch.arange(len(row.ids), device=device)
        # A token sees those before it of its own question that all answers share or that are its own answer's.
        sees = (order[:, None] >= order[None, :]) & (segment[:, None] == segment[None, :])
        sees &= (branch[None, :] < 0) | (branch[None, :] == branch[:, None])
        if self.padding_id is not None:
            sees &= ids != self.padding_id
        # A token that sees nothing at all has no softmax; nothing sees such a token.
        sees |= ~sees.any(dim=1, keepdim=True) & torch.eye(len(order), dtype=torch.bool, device=device)
        predicting = torch.tensor(sorted({place for places in row.places for place in places}), device=device)
        output: Any = self.model(
            input_ids=ids,
            attention_mask=self._mask(sees)[None, None],
            position_ids=torch.tensor([row.positions], device=device),
            use_cache=False,
            logits_to_keep=predicting,
        )
        logits = output.logits[0]
        if len(logits) != len(predicting):
            raise ValueError("the model keeps other logits than those asked for")
        index = {int(place): i for i, place in enumerate(predicting.tolist())}
        answers = [_one(one, number) for one in asked for number in range(len(one.sequences))]
        return [
            _values(logits[[index[place] for place in places]], answer)
            for answer, places in zip(answers, row.places, strict=True)
        ]

    def _mask(self, sees: Tensor) -> Tensor:
        """Return who sees whom (T, T) in the form that the model's attention takes."""
        if getattr(self.model.config.get_text_config(), "_attn_implementation", None) == "sdpa":
            return sees
        hidden = torch.finfo(self.model.dtype).min
        return torch.zeros(sees.shape, dtype=self.model.dtype, device=sees.device).masked_fill_(~sees, hidden)

    def padded(self, answers: Sequence[_Answer]) -> list[AnswerLikelihood]:
        """Return the likelihoods of answers from one batch padded on the right."""
        row_of = _numbered(answer.sequence.ids for answer in answers)
        width = max(map(len, row_of))
        lengths = torch.tensor([len(row) for row in row_of], device=self.model.device)
        filler = 0 if self.padding_id is None else self.padding_id
        ids = torch.tensor([[*row, *[filler] * (width - len(row))] for row in row_of], device=self.model.device)
        inside = torch.arange(width, device=self.model.device) < lengths[:, None]
        seen = inside if self.padding_id is None else ids != self.padding_id
        output: Any = self.model(input_ids=ids, attention_mask=seen.long(), use_cache=False)
        return [
            _values(output.logits[row_of[a.sequence.ids], a.sequence.start - 1 : len(a.sequence.ids) - 1], a)
            for a in answers
        ]


@dataclass(frozen=True, slots=True)
class _PackedRow:
    """Questions and answers back to back; each list has an item a token, but `places`."""

    ids: list[int]
    positions: list[int]
    segments: list[int]
    """Which question the token belongs to."""
    branches: list[int]
    """Which of its answers; -1 for what they share."""
    places: list[list[int]]
    """For each answer, the index of the token that predicts each of its labels."""


def _row_of(asked: Sequence[AskedAnswers]) -> _PackedRow:
    row = _PackedRow([], [], [], [], [])
    for segment, one in enumerate(asked):
        shared = _num_shared(one)
        base = len(row.ids)
        _append(row, one.sequences[0].ids[:shared], 0, segment, -1)
        own: dict[tuple[int, ...], int] = {}
        for branch, ids in enumerate(_numbered(sequence.ids for sequence in one.sequences)):
            own[ids] = len(row.ids)
            # The last token predicts nothing.
            _append(row, ids[shared:-1], shared, segment, branch)
        for sequence in one.sequences:
            predicting = range(sequence.start - 1, len(sequence.ids) - 1)
            row.places.append([base + p if p < shared else own[sequence.ids] + p - shared for p in predicting])
    return row


def _numbered(rows: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], int]:
    """Return the distinct ones of some rows of tokens, each with its number, in order."""
    return {ids: number for number, ids in enumerate(dict.fromkeys(rows))}


def _append(row: _PackedRow, ids: Sequence[int], first: int, segment: int, branch: int) -> None:
    row.ids.extend(ids)
    row.positions.extend(range(first, first + len(ids)))
    row.segments.extend([segment] * len(ids))
    row.branches.extend([branch] * len(ids))


def _num_shared(one: AskedAnswers) -> int:
    """How many tokens at the beginning all answers share, the last of each sequence left out."""
    first, last = min(s.ids for s in one.sequences), max(s.ids for s in one.sequences)
    shortest = min(len(s.ids) for s in one.sequences) - 1
    return next((i for i in range(shortest) if first[i] != last[i]), shortest)


def _num_tokens(one: AskedAnswers) -> int:
    shared = _num_shared(one)
    return shared + sum(len(ids) - 1 - shared for ids in _numbered(s.ids for s in one.sequences))


def _num_labels(one: AskedAnswers) -> int:
    """Return how many tokens are labels, those of answers of the same tokens counted once."""
    rows = _numbered(s.ids for s in one.sequences)
    return sum(max(len(s.labels) for s in one.sequences if s.ids == ids) for ids in rows)


def _packs(asked: Sequence[AskedAnswers], max_labels: int) -> Iterator[list[int]]:
    """Cut questions, longest first, into packs."""
    sizes = [(_num_tokens(one), _num_labels(one)) for one in asked]
    pack: list[int] = []
    tokens = labels = 0
    for index in sorted(range(len(asked)), key=lambda i: -sizes[i][0]):
        more = sizes[index]
        if pack and (tokens + more[0] > PACK_TOKENS or labels + more[1] > max_labels):
            yield pack
            pack, tokens, labels = [], 0, 0
        pack.append(index)
        tokens, labels = tokens + more[0], labels + more[1]
    if pack:
        yield pack


def _probe(packs: Sequence[Sequence[int]], asked: Sequence[AskedAnswers]) -> list[int]:
    """The questions on which packing is tried: the longest with the shortest, so that a window of attention shows."""
    found = dict.fromkeys([*packs[0][:2], *packs[-1][-2:]])
    return [index for index in found if asked[index].sequences]


def _places(pack: Sequence[int], asked: Sequence[AskedAnswers]) -> list[tuple[int, int]]:
    return [(q, a) for q in pack for a in range(len(asked[q].sequences))]


def _batches(
    flat: Sequence[tuple[int, int]], asked: Sequence[AskedAnswers], batch_size: int
) -> list[list[tuple[int, int]]]:
    """Sequences of like length in batches; answers of the same tokens to a question count as one."""
    alike: dict[tuple[int, tuple[int, ...]], list[tuple[int, int]]] = {}
    for question, answer in flat:
        alike.setdefault((question, asked[question].sequences[answer].ids), []).append((question, answer))
    ordered = [places for _, places in sorted(alike.items(), key=lambda item: -len(item[0][1]))]
    return [list(chain(*ordered[i : i + batch_size])) for i in range(0, len(ordered), batch_size)]


def _values(logits: Tensor, answer: _Answer) -> AnswerLikelihood:
    """Return what logits (L, V) say of the labels of an answer."""
    labels = torch.tensor(answer.sequence.labels, dtype=torch.int64, device=logits.device)
    if not len(labels):
        return AnswerLikelihood(float("nan"), float("nan"))
    logits = logits.float()
    loss = cross_entropy(logits, labels, reduction="none").sum() / len(labels)
    plain = AnswerLikelihood(float(loss), float(torch.exp(-loss)))
    if not answer.in_detail:
        return plain
    every = logits[:-1].log_softmax(dim=-1)
    kept = labels[:-1]
    log_probs = every.gather(1, kept[:, None]).squeeze(1)
    weights = every.exp()
    mean = (weights * every).sum(-1)
    variance = (weights * every.square()).sum(-1) - mean.square()
    normed = (log_probs - mean) / variance.clamp(min=_MIN_VARIANCE).sqrt()
    return AnswerLikelihood(
        plain.loss,
        plain.probability,
        tuple(log_probs.tolist()),
        tuple((every.argmax(-1) == kept).tolist()),
        tuple(normed.tolist()),
    )
