"""TOFU's likelihoods: one pass for all scores with shared questions, against a pass a score in padded batches.

    python -m bench.suites --data DIR [--shape NAME] [--rows N] [--json FILE]

Rows are TOFU's in its proportions: the first N of the forget, retain and holdout rows, N/4 of the two sets of facts.
Weights are random, the tokenizer is a target's or OLMo's. Plain is a pass over the rows for each score that stands by
itself. Open-unlearning keeps the losses of paraphrases and wrong answers for the truth ratio and the probability among
options; that is timed too, and ours with the scores of every token beside those of the labels that the reference takes.
Each way is timed in turn, ours first and last, in this one process on one thread, by
process time. That every loss is equal to rounding in float32, and every count exactly, is checked.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bench.machine import describe_machine, prepare_process, timed
from bench.shapes import SHAPES, make_model
from letheon.data.benchmarks.tofu import Tofu, TofuSet, read_tofu
from letheon.evaluation.metrics.likelihood import AnswerLikelihood, AskedAnswers, likelihoods
from letheon.evaluation.suites.tofu.sound import SoundTemplate
from letheon.evaluation.templates import LabelledSequence, QuestionTemplate, question_template
from letheon.model.loading import load_tokenizer
from letheon.report.tables import Table, to_markdown
from letheon.storage.files import write_json

CPU = torch.device("cpu")
BATCH_SIZE = 32
TOLERANCE = 2e-5
"""Between two float32 losses in nats a label whose sums ran in other orders."""
ATTACK_PASSES = 4
"""Passes over forget and holdout rows besides the first: Min-K, Min-K++ (two), and zlib or loss."""
FORGET_PASSES = ATTACK_PASSES + 3
"""The same with memorisation, extraction strength and the other of the two."""
OURS, PLAIN, KEPT = "one pass, packed (evaluate)", "a pass a score", "a pass a score, losses kept (open-unlearning)"
SOUND_TOO = "one pass, packed, and the scores with every token"


@dataclass(frozen=True, slots=True)
class Questions:
    """A set as tokens, and how often plain versions pass over its answers besides once."""

    asked: list[AskedAnswers]
    whole: list[AskedAnswers]
    """The same, each answer also with all of its tokens as labels."""
    num_more: int
    """Over the answers of which everything is wanted."""
    again: int
    """From which answer on the truth ratio, or the probability among options, needs another pass unless it is kept."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One way's time."""

    way: str
    num_runs: int
    process_s: float
    ratio: float
    """How many times as long as ours."""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with tofu/, targets/ and tokenizers/")
    parser.add_argument("--shape", default="6m", choices=list(SHAPES))
    parser.add_argument("--rows", type=int, default=32, help="rows of each set")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    prepare_process(threads=1)
    template = question_template(tokenizer_for(given.shape, given.data))
    model = make_model(SHAPES[given.shape], dtype=torch.float32, device=CPU)
    sets = questions_of(read_tofu(given.data / "tofu"), template, num_rows=given.rows)
    lines, largest = measure(model, sets, template.padding)
    print(f"{given.shape}, random weights, {given.rows} rows a set; losses differ by at most {largest:.1e}\n")
    print(to_markdown(as_table(lines)))
    if given.json is not None:
        found = {"shape": given.shape, "num_rows": given.rows, "largest": largest, "ways": [asdict(m) for m in lines]}
        write_json(given.json, {"machine": describe_machine(CPU), "suites": found})


def tokenizer_for(shape: str, data: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer whose vocabulary the shape has: that of a small target, or OLMo's."""
    if SHAPES[shape].vocab_size < 50_000:
        return load_tokenizer(str(data / "targets" / "lume-val-6m"))
    file = data / "tokenizers" / "olmo-0724.json"
    return PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="<|endoftext|>")


def questions_of(tofu: Tofu, template: QuestionTemplate, *, num_rows: int) -> list[Questions]:
    """Return the sets as tokens."""
    assert tofu.holdout is not None, "the bench needs the holdout rows"
    return [
        _questions(tofu.forget, template, num_rows, in_detail=1, num_more=FORGET_PASSES, again=1),
        _questions(tofu.holdout, template, num_rows, in_detail=1, num_more=ATTACK_PASSES, again=1),
        _questions(tofu.retain, template, num_rows, in_detail=0, num_more=0, again=1),
        *(
            _questions(one, template, max(1, num_rows // 4), in_detail=0, num_more=0, again=0)
            for one in (tofu.real_authors, tofu.world_facts)
        ),
    ]


def _questions(
    one: TofuSet, template: QuestionTemplate, num_rows: int, *, in_detail: int, num_more: int, again: int
) -> Questions:
    asked, every = (_asked(one, form, num_rows, in_detail=in_detail) for form in (template, SoundTemplate(template)))
    whole = [
        AskedAnswers(tuple(chain(*zip(a.sequences, b.sequences, strict=True))), in_detail=2 * in_detail)
        for a, b in zip(asked, every, strict=True)
    ]
    return Questions(asked, whole, num_more, again)


def measure(model: PreTrainedModel, sets: Sequence[Questions], padding: int) -> tuple[list[Measured], float]:
    """Time every way, ours first and last; return the lines and the largest difference of losses."""
    asked = [one for several in sets for one in several.asked]
    whole = [one for several in sets for one in several.whole]
    ways = {
        OURS: partial(likelihoods, model, asked, padding=padding),
        SOUND_TOO: partial(likelihoods, model, whole, padding=padding),
        KEPT: partial(passes, model, sets, padding, keeps=True),
        PLAIN: partial(passes, model, sets, padding, keeps=False),
    }
    likelihoods(model, asked[:2], padding=padding)  # whatever happens only the first time
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[tuple[AnswerLikelihood, ...]]] = {}
    for name in (OURS, SOUND_TOO, KEPT, PLAIN, OURS):
        timing, found[name] = timed(ways[name], CPU)
        seconds[name].append(timing.process_s)
    largest = check_equal(found[OURS], found[PLAIN])
    ours = fmean(seconds[OURS])
    lines = [Measured(name, len(times), fmean(times), fmean(times) / ours) for name, times in seconds.items()]
    return lines, largest


def check_equal(ours: Sequence[tuple[AnswerLikelihood, ...]], plain: Sequence[tuple[AnswerLikelihood, ...]]) -> float:
    """Check that both ways found the same; return the largest difference of losses."""
    pairs = [(a, b) for one, other in zip(ours, plain, strict=True) for a, b in zip(one, other, strict=True)]
    largest = max(abs(a.loss - b.loss) for a, b in pairs)
    assert largest < TOLERANCE, f"losses differ by {largest}"
    assert all(a.hits == b.hits for a, b in pairs), "some tokens are likeliest in one way alone"
    return largest


def passes(
    model: PreTrainedModel, sets: Sequence[Questions], padding: int, *, keeps: bool
) -> list[tuple[AnswerLikelihood, ...]]:
    """Return the likelihoods as a plain version finds them, every pass made."""
    found: list[tuple[AnswerLikelihood, ...]] = []
    for one in sets:
        by_answer = []
        for place in range(len(one.asked[0].sequences)):
            sequences = [asked.sequences[place] for asked in one.asked]
            is_detailed = place < one.asked[0].in_detail
            by_answer.append(plain_pass(model, sequences, padding, in_detail=is_detailed))
            num_more = (one.num_more if is_detailed else 0) + (place >= one.again and not keeps)
            for _ in range(num_more):
                plain_pass(model, sequences, padding, in_detail=is_detailed)
        found += [tuple(answers) for answers in zip(*by_answer, strict=True)]
    return found


@torch.no_grad()
def plain_pass(
    model: PreTrainedModel, sequences: Sequence[LabelledSequence], padding: int, *, in_detail: bool
) -> list[AnswerLikelihood]:
    """Return the likelihoods of answers from batches padded on the right, with the logits of every position."""
    found = []
    for start in range(0, len(sequences), BATCH_SIZE):
        batch = sequences[start : start + BATCH_SIZE]
        width = max(len(sequence.ids) for sequence in batch)
        ids = torch.tensor([[*s.ids, *[padding] * (width - len(s.ids))] for s in batch])
        log_probs = model(input_ids=ids, attention_mask=ids.ne(padding).long()).logits.log_softmax(-1)
        found += [_likelihood(log_probs[i], s, in_detail=in_detail) for i, s in enumerate(batch)]
    return found


def as_table(lines: Sequence[Measured]) -> Table:
    """Return the table that is printed."""
    cells = tuple((m.way, m.num_runs, f"{m.process_s:.2f}", f"{m.ratio:.2f}") for m in lines)
    return Table("TOFU's likelihoods", ("way", "runs", "process s", "times ours"), cells)


def _likelihood(log_probs: Tensor, sequence: LabelledSequence, *, in_detail: bool) -> AnswerLikelihood:
    labels = torch.tensor(sequence.labels)
    rows = log_probs[sequence.start - 1 : len(sequence.ids) - 1]
    own = rows.gather(1, labels[:, None]).squeeze(1)
    loss = float(-own.sum() / len(labels))
    if not in_detail:
        return AnswerLikelihood(loss, float(torch.tensor(-loss).exp()))
    every, kept = rows[:-1], labels[:-1]
    mean = (every.exp() * every).sum(-1)
    variance = (every.exp() * every.square()).sum(-1) - mean.square()
    return AnswerLikelihood(
        loss,
        float(torch.tensor(-loss).exp()),
        tuple(own[:-1].tolist()),
        tuple((every.argmax(-1) == kept).tolist()),
        tuple(((own[:-1] - mean) / variance.clamp(min=1e-6).sqrt()).tolist()),
    )


def _asked(
    one: TofuSet, template: QuestionTemplate | SoundTemplate, num_rows: int, *, in_detail: int
) -> list[AskedAnswers]:
    found = []
    for index, row in enumerate(one.rows[:num_rows]):
        answers = [row.answer, *one.paraphrases[index : index + 1], *(one.wrong[index] if one.wrong else ())]
        found.append(AskedAnswers(tuple(template.sequence(row.prompt, answer) for answer in answers), in_detail))
    return found


if __name__ == "__main__":
    main()
