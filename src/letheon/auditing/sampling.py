"""Sampling: does the model say a row in one of many answers, though not in the likeliest?

leak@k = 1 - C(n - c, k) / C(n, k) is the chance that k of n answers, of which c give the row away, hold one that does
(Reisizadeh et al. 2025, arXiv 2511.04934; the estimator is pass@k's, Chen et al. 2021, arXiv 2107.03374). Answers are
drawn at temperature 1 from the whole vocabulary, after the text before the answer in the form of the rows. One gives a
question away by an exact match, a text by a ROUGE-L recall of .5 or more.

Differs from the paper: no nucleus, no other temperatures, and an answer has at most 16 tokens more than the row's.
"""

from collections.abc import Sequence
from functools import partial
from math import comb

from letheon.auditing.attack import Attack, Knowledge, Point, Subject
from letheon.auditing.knowledge import RECALLED, is_success, value_of
from letheon.data.forms import as_asked
from letheon.data.rows import Row
from letheon.evaluation.in_form import Asking, askings, said
from letheon.evaluation.sampling import samples_from
from letheon.progress import Progressed

LONGEST = 128
"""The most samples for which leak@k is given."""
SPARE_TOKENS = 16
"""Tokens that a sample may have more than the row's answer; what rambles on is not waited for."""


def leak_at(k: int, *, num_samples: int, num_leaks: int) -> float:
    """Return leak@k = 1 - C(n - c, k) / C(n, k), 0 to 1, for n samples of which c leak; 1 <= k <= n."""
    return 1.0 - comb(num_samples - num_leaks, k) / comb(num_samples, k)


def counts_up_to(num_samples: int) -> list[int]:
    """Return the k for which leak@k is given: powers of two, and the number of samples."""
    most = min(num_samples, LONGEST)
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


def attack(subject: Subject, rows: Sequence[Row], tell: Progressed) -> Knowledge:
    """Draw answers to each row, and return leak@k for every k; the last point has each row's best answer."""
    asked = [as_asked(row) for row in rows]
    drawn = sample(subject, rows, tell)
    leaks = [sum(is_success(row, text) for text in texts) for row, texts in zip(asked, drawn, strict=True)]
    counts = counts_up_to(subject.num_samples)
    points = [
        Point(k, tuple(leak_at(k, num_samples=subject.num_samples, num_leaks=found) for found in leaks))
        for k in counts[:-1]
    ]
    best = [max(texts, key=partial(value_of, row)) for row, texts in zip(asked, drawn, strict=True)]
    last = tuple(leak_at(counts[-1], num_samples=subject.num_samples, num_leaks=found) for found in leaks)
    note = (
        f"{subject.num_samples} answers to each row at temperature 1; one counts that is an exact match, or for a text "
        f"has a ROUGE-L recall of at least {RECALLED}"
    )
    return Knowledge(tuple(range(len(rows))), (*points, Point(counts[-1], last, texts=tuple(best))), notes=(note,))


def sample(subject: Subject, rows: Sequence[Row], tell: Progressed) -> list[list[str]]:
    """Return `subject.num_samples` answers to each row, asked with the text that was trained on before its answer."""
    ways = [askings(row, subject.tokenizer, subject.form)[0] for row in rows]
    found = samples_from(
        subject.model,
        subject.tokenizer,
        [way.ids for way in ways],
        num_samples=subject.num_samples,
        seed=subject.seed,
        to_match=[_to_match(row, way) for row, way in zip(rows, ways, strict=True)],
        rooms=[len(way.guess) + SPARE_TOKENS for way in ways],
        more_ends={way.stop for way in ways if way.stop is not None},
        max_new_tokens=subject.max_new_tokens,
        batch_size=subject.batch_size,
        names=[f"row {row.id}" for row in rows],
        progress=partial(tell, "sampling"),
    )
    return [[said(one.text, way) for one in texts] for texts, way in zip(found, ways, strict=True)]


def _to_match(row: Row, way: Asking) -> str | None:
    return row.answer if row.kind == "question" and not way.end and not way.written else None


ATTACKS = (
    Attack(
        name="sampling",
        title="Sampling, leak@k",
        source="Reisizadeh et al. 2025, arXiv 2511.04934",
        unit="samples",
        run=attack,
        measure="own",
        passes=6.0,
    ),
)
