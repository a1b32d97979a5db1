"""Logit lens: does a layer below the last still predict an answer that the model no longer says?

Unlearning may leave the lower layers as they were and only keep the last ones from saying what those have found (Patil
et al. 2024, arXiv 2309.17410). The states above the first n layers are read by the model's own last norm and head
(nostalgebraist 2020, the logit lens), and the share of answer tokens is told that are the likeliest there, each after
the true ones before it.

Differs from the paper: a token counts only if it is the likeliest, not one of the k likeliest, and of the layers at
most eight are read.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from transformers import PreTrainedModel

from letheon.auditing.attack import Attack, Knowledge, Point, Subject
from letheon.auditing.extraction import answer_hits, answer_sequence, exact_memorisation
from letheon.data.rows import Row
from letheon.model.layers import decoder_layers
from letheon.progress import Progressed

MOST_DEPTHS = 8
"""Depths at which a model is read."""


def depths_of(model: PreTrainedModel) -> list[int]:
    """Return after how many layers a model is read: at most `MOST_DEPTHS` even steps, the last after all of them."""
    count = len(decoder_layers(model))
    steps = min(count, MOST_DEPTHS)
    return [-(-count * step // steps) for step in range(1, steps + 1)]


@contextmanager
def first_layers(model: PreTrainedModel, count: int) -> Iterator[None]:
    """Leave out all layers but the first `count` while the block runs, so that norm and head see what those give."""
    layers = decoder_layers(model)
    others = list(layers)[count:]
    del layers[count:]
    try:
        yield
    finally:
        layers.extend(others)


def attack(subject: Subject, rows: Sequence[Row], tell: Progressed) -> Knowledge:
    """Return the share of each answer's tokens that are the likeliest after some of the layers."""
    sequences = [answer_sequence(subject, row) for row in rows]
    points = []
    for depth in depths_of(subject.model):
        with first_layers(subject.model, depth):
            hits = answer_hits(subject.model, sequences, partial(tell, f"reading after layer {depth}"))
        points.append(Point(depth, tuple(map(exact_memorisation, hits)), label=f"layer {depth}"))
    return Knowledge(tuple(range(len(rows))), tuple(points))


ATTACKS = (
    Attack(
        name="logit-lens",
        title="Logit lens, answers in the layers",
        source="Patil et al. 2024, arXiv 2309.17410",
        unit="layers",
        run=attack,
        measure="own",
        passes=4.1,
        is_default=False,
    ),
)
