"""Extraction: how much of an answer does the model still predict, token by token, and how far up does it rank a secret?

The answer's tokens are given to the model one after the other, in the form of the rows, and a token is a hit where it
is the likeliest:

* exact memorisation, the share of hits (Tirumala et al. 2022, arXiv 2205.10770);
* extraction strength, 1 - k / A, where k is the fewest of the A tokens after which greedy decoding gives all the others
  (Carlini et al. 2021, arXiv 2012.07805; Wang et al. 2025, arXiv 2406.09179);
* the longest verbatim run, the most hits on end, as a share of A (Carlini et al. 2023, arXiv 2202.07646);
* exposure of secrets, log2 R - log2 rank among R candidates of the same form, as a share of log2 R (Carlini et al.
  2019, arXiv 1802.08232). Secrets are answers with numbers: phone numbers, dates, addresses. Chance gives .23.

Differs from the last: the candidates are drawn and not all there are, and only digits differ; what all secrets of one
form share (a prefix) the candidates have too.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import date, timedelta
from functools import partial
from itertools import chain, groupby, takewhile
from math import log2

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, PreTrainedModel

from letheon.auditing.attack import Attack, Given, Knowledge, Point, Subject
from letheon.data.rows import Row
from letheon.data.sequences import TokenSequence, tokenise
from letheon.evaluation.batches import StepProgress, length_batches, padded, reading
from letheon.evaluation.decoding import can_be_batched, logits_at
from letheon.evaluation.in_form import answer_values
from letheon.evaluation.metrics.membership import MAX_LOGITS
from letheon.processes import shared
from letheon.progress import Progressed

NUM_CANDIDATES = 64
"""A secret among its made-up peers: 6 bits."""
FEWEST_DIGITS = 5
"""Digits of an answer from which it is a secret; a year is none."""
FEWEST_SECRETS = 10
"""Rows with a secret, of either side, below which an interval says nothing."""
_FEWEST_PEERS = 15
_FEWEST_ALIKE = 3
"""Secrets of one form from which what they share counts as the form's."""
_DRAWS_PER_PEER = 20
_ROWS_AT_ONCE = 32
_BATCH_TOKENS = 4096
_UNLIMITED = 2**31
_DIGIT = re.compile("[0-9]")
_DATE = re.compile(r"\b(?:19|20)\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])\b")
_FIRST_DAY = date(1940, 1, 1)
_NUM_DAYS = 25_000


def exact_memorisation(hits: Tensor) -> float:
    """Return the share of hits (A,) bool."""
    return float(hits.double().mean())


def extraction_strength(hits: Tensor) -> float:
    """Return the share of the tokens that stand behind the last miss in hits (A,) bool."""
    misses = (~hits).nonzero()
    return 1.0 if not len(misses) else 1.0 - (int(misses[-1]) + 1) / len(hits)


def longest_run(hits: Tensor) -> float:
    """Return the most hits on end in hits (A,) bool, over A."""
    runs = [len(list(run)) for is_hit, run in groupby(hits.tolist()) if is_hit]
    return max(runs, default=0) / len(hits)


def exposure(loss: float, others: Sequence[float]) -> float:
    """Return (log2 R - log2 rank) / log2 R, 0 to 1, of a secret whose loss is ranked among the R - 1 losses of others.

    1 where it is below all of them; a tie counts against it.
    """
    count = len(others) + 1
    rank = 1 + sum(other <= loss for other in others)
    return (log2(count) - log2(rank)) / log2(count)


def shape_of(text: str) -> str:
    """Return `text` with a 0 in place of each digit."""
    return _DIGIT.sub("0", text)


def is_secret(row: Row) -> bool:
    """Return whether the answer is one whose exposure can be told."""
    return not row.is_document and len(_DIGIT.findall(row.answer)) >= FEWEST_DIGITS


def shared_digits(secrets: Sequence[str]) -> dict[str, frozenset[int]]:
    """Return by shape the places of the digits that all secrets of that shape share, where there are three or more."""
    by_shape: dict[str, set[str]] = {}
    for secret in secrets:
        by_shape.setdefault(shape_of(secret), set()).add(secret)
    return {
        shape: frozenset(i for i, letters in enumerate(zip(*found, strict=True)) if len(set(letters)) == 1)
        for shape, found in by_shape.items()
        if len(found) >= _FEWEST_ALIKE
    }


def peers_of(secret: str, *, kept: frozenset[int], draw: random.Random) -> list[str]:
    """Return up to `NUM_CANDIDATES` - 1 other texts of the form of `secret`: its digits drawn anew, but for `kept`.

    A date stays a date, and a number does not begin with 0 unless that of the secret does.
    """
    peers: dict[str, None] = {}
    for _ in range(_DRAWS_PER_PEER * NUM_CANDIDATES):
        peer = _drawn(secret, kept, draw)
        if peer != secret:
            peers[peer] = None
        if len(peers) == NUM_CANDIDATES - 1:
            break
    return list(peers)


def answer_sequence(subject: Subject, row: Row) -> TokenSequence:
    """Return a row in the form in which the model knows it, without an end."""
    form = subject.form
    return tokenise(row, subject.tokenizer, template=form.template, date=form.date, max_length=_UNLIMITED)


@torch.no_grad()
def answer_hits(model: PreTrainedModel, sequences: Sequence[TokenSequence], progress: StepProgress) -> list[Tensor]:
    """Return for each sequence (A,) bool: whether an answer token is the likeliest after those before it."""
    with reading(model) as plain:
        lengths = [len(sequence.input_ids) for sequence in sequences]
        most = max(1, MAX_LOGITS // int(plain.config.get_text_config().vocab_size))

        def hits_of(batch: Sequence[int]) -> list[Tensor]:
            ids, _ = padded([sequences[i].input_ids for i in batch], side="right", device=plain.device)
            likeliest = logits_at(plain, _places(sequences, batch), input_ids=ids, use_cache=False).argmax(-1)
            counts = [sequences[index].num_answer_tokens for index in batch]
            return [
                (chosen == ids[place, sequences[index].answer_start : lengths[index]]).cpu()
                for place, (index, chosen) in enumerate(zip(batch, likeliest.split(counts), strict=True))
            ]

        batches = length_batches(lengths, max_rows=_ROWS_AT_ONCE, max_tokens=most)
        hits = shared(batches, hits_of, counts=list(map(len, batches)), progress=progress)
        found = dict(zip(chain(*batches), chain(*hits), strict=True))
    return [found[index] for index in range(len(sequences))]


@torch.no_grad()
def answer_losses(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> list[float]:
    """Return the summed cross-entropy, nats, of the answers of sequences that begin alike, which is read once."""
    columns = zip(*(sequence.input_ids[: sequence.answer_start - 1] for sequence in sequences), strict=False)
    num_shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    with reading(model) as plain:
        if not num_shared or not can_be_batched(plain):
            return list(answer_values(plain, sequences).losses)
        cache = DynamicCache()
        start, _ = padded([sequences[0].input_ids[:num_shared]], side="right", device=plain.device)
        plain(input_ids=start, past_key_values=cache, use_cache=True, logits_to_keep=1)
        lengths = [len(sequence.input_ids) for sequence in sequences]
        found: dict[int, float] = {}
        for batch in length_batches(lengths, max_rows=len(lengths), max_tokens=_BATCH_TOKENS):
            found.update(
                zip(batch, _losses_after(plain, cache, [sequences[i] for i in batch], num_shared), strict=True)
            )
    return [found[index] for index in range(len(sequences))]


def _losses_after(
    model: PreTrainedModel, cache: DynamicCache, sequences: Sequence[TokenSequence], shared: int
) -> list[float]:
    """The losses of sequences of which the first `shared` tokens are in `cache`, one row, which stays as it is."""
    own = deepcopy(cache)
    own.batch_repeat_interleave(len(sequences))
    ids, _ = padded([sequence.input_ids[shared:] for sequence in sequences], side="right", device=model.device)
    places = [(row, place - shared) for row, place in _places(sequences, range(len(sequences)))]
    logits = logits_at(model, places, input_ids=ids, past_key_values=own, use_cache=True).float()
    labels = torch.tensor([label for sequence in sequences for label in sequence.labels], device=model.device)
    losses = cross_entropy(logits, labels, reduction="none").double()
    return [float(part.sum()) for part in losses.split([sequence.num_answer_tokens for sequence in sequences])]


def _places(sequences: Sequence[TokenSequence], batch: Sequence[int]) -> list[tuple[int, int]]:
    """Where the answers' tokens of a batch are predicted: (row, position)."""
    return [
        (row, place)
        for row, index in enumerate(batch)
        for place in range(sequences[index].answer_start - 1, len(sequences[index].input_ids) - 1)
    ]


def read(subject: Subject, rows: Sequence[Row], tell: Progressed, *, value: Callable[[Tensor], float]) -> Knowledge:
    """Return `value` of the hits in each row's answer, and which has the longest run."""
    sequences = [answer_sequence(subject, row) for row in rows]
    model, progress = subject.model, partial(tell, "reading")
    hits = subject.reads("hits", model, sequences, lambda: answer_hits(model, sequences, progress))
    runs = [round(longest_run(one) * len(one)) for one in hits]
    best = max(range(len(rows)), key=runs.__getitem__)
    note = f"the longest verbatim run has {runs[best]} of {len(hits[best])} tokens (row {rows[best].id})"
    return Knowledge(
        tuple(range(len(rows))), (Point(1.0, tuple(value(one) for one in hits), label="one pass"),), notes=(note,)
    )


def expose(subject: Subject, rows: Sequence[Row], tell: Progressed) -> Knowledge:
    """Return the exposure of each secret among `rows`."""
    kept = shared_digits([row.answer for row in (*rows, *subject.given.rows) if is_secret(row)])
    peers = {place: _candidates(subject, row, kept) for place, row in enumerate(rows) if is_secret(row)}
    places = [place for place, found in peers.items() if len(found) > _FEWEST_PEERS]

    def exposed(place: int) -> float:
        first, *others = answer_losses(subject.model, peers[place])
        return exposure(first, others)

    values = shared(places, exposed, progress=partial(tell, "ranking secrets"))
    num_sure = sum(value == 1.0 for value in values)
    note = f"{num_sure} of {len(values)} secrets are ranked before all their made-up peers"
    return Knowledge(tuple(places), (Point(float(NUM_CANDIDATES), tuple(values)),), notes=(note,))


def _candidates(subject: Subject, row: Row, kept: Mapping[str, frozenset[int]]) -> list[TokenSequence]:
    """The sequences of a row and of its peers."""
    draw = random.Random(f"{subject.seed} {row.id}")
    peers = peers_of(row.answer, kept=kept.get(shape_of(row.answer), frozenset()), draw=draw)
    return [answer_sequence(subject, replace(row, answer=answer)) for answer in (row.answer, *peers)]


def _drawn(secret: str, kept: frozenset[int], draw: random.Random) -> str:
    letters = list(secret)
    for place, letter in enumerate(secret):
        if _DIGIT.match(letter) and place not in kept:
            is_first = letter != "0" and not _DIGIT.match(secret[place - 1 : place])
            letters[place] = draw.choice("123456789" if is_first else "0123456789")
    for found in _DATE.finditer(secret):
        day = _FIRST_DAY + timedelta(days=draw.randrange(_NUM_DAYS))
        letters[found.start() : found.end()] = day.isoformat()
    return "".join(letters)


def _needs_secrets(given: Given) -> str | None:
    for name, rows in (("forget", given.rows), ("placebo", given.unseen)):
        count = sum(is_secret(row) for row in rows)
        if count < FEWEST_SECRETS:
            return (
                f"{count} of the {len(rows)} {name} rows have an answer with {FEWEST_DIGITS} digits or more, at least "
                f"{FEWEST_SECRETS} numbers or addresses to rank are needed"
            )
    return None


def _attack(name: str, title: str, source: str, value: Callable[[Tensor], float]) -> Attack:
    run = partial(read, value=value)
    return Attack(f"extraction-{name}", title, source, "passes", run, measure="own", passes=0.8)


ATTACKS = (
    _attack("memorisation", "Memorised tokens", "Tirumala et al. 2022, arXiv 2205.10770", exact_memorisation),
    _attack("strength", "Extraction from the start", "Carlini et al. 2021, arXiv 2012.07805", extraction_strength),
    _attack("run", "Longest verbatim run", "Carlini et al. 2023, arXiv 2202.07646", longest_run),
    Attack(
        name="extraction-exposure",
        title="Exposure of secrets",
        source="Carlini et al. 2019, arXiv 1802.08232",
        unit="candidates",
        run=expose,
        needs=_needs_secrets,
        measure="own",
        passes=4.0,
    ),
)
