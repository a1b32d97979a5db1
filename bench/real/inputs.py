"""What `bench.real` reads: a checkpoint, rows, documents, text and questions; with --small made up on the spot."""

import json
from dataclasses import dataclass
from pathlib import Path

from bench.documents import unseen_documents, write_documents
from bench.real.checkpoint import make_checkpoint
from bench.real.questions import CHAT_QUESTIONS, SMALL_QUESTIONS
from bench.real.rows import Sides, customer_records, lume_slice, other_records
from letheon.data.benchmarks import synthetic
from letheon.data.benchmarks.lume import read_lume
from letheon.data.rows import Row, write_rows
from letheon.memorizing.memorize import memorize
from letheon.memorizing.options import MemorizeOptions
from letheon.model.architectures import new_model, train_tokenizer
from letheon.model.loading import save_model
from letheon.storage.files import write_text

_CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>\n{{ message['content'] }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


PLACEBOS_A_ROW = 3


@dataclass(frozen=True, slots=True)
class World:
    """What both parts share: the model before anything, and how its general ability is measured."""

    checkpoint: Path
    text: Path
    """General text to memorise beside the rows, documents separated by blank lines."""
    unseen_text: Path
    """General text whose loss is measured."""
    mmlu: Path


@dataclass(frozen=True, slots=True)
class PartFiles:
    """The rows of one part, as files."""

    forget: Path
    retain: Path
    template: str
    members: Path | None = None
    """Documents among the rows to forget, for the membership attack."""
    nonmembers: Path | None = None
    holdout: Path | None = None
    """Documents that neither the model nor the attack holds, from which a run chooses."""
    holdout_task: str | None = None
    placebos: Path | None = None
    """Rows like those to forget that no model saw, for an audit."""


def real_world(data: Path, checkpoint: Path | None, folder: Path) -> World:
    """Return the real model and data; a checkpoint that is not given is made.

    Raises:
        CheckpointError: it cannot be made here.
    """
    return World(
        checkpoint=checkpoint or make_checkpoint(folder / "smollm2"),
        text=data / "text" / "wikitext2-valid.txt",
        unseen_text=data / "text" / "wikitext2-test.txt",
        mmlu=data / "mmlu",
    )


def real_lume(data: Path, folder: Path, *, num_rows: int, num_holdout: int) -> PartFiles:
    """Write a slice of LUME's validation rows, and the documents of the attack that it holds."""
    lume = read_lume(data / "lume", "validation")
    forget, retain = lume_slice(lume.forget, num_rows), lume_slice(lume.retain, num_rows)
    known = data / "semeval" / "mia" / "validation"
    taken = {row.id for row in forget}
    members = [text for name, text in _named_documents(known / "member.jsonl") if name in taken]
    nonmembers, others = unseen_documents(data)
    forget_file, retain_file = _rows(folder, Sides(forget, retain))
    return PartFiles(
        forget_file,
        retain_file,
        template="joined",
        members=write_documents(members, folder / "members.jsonl"),
        nonmembers=write_documents(nonmembers, folder / "nonmembers.jsonl"),
        holdout=write_documents(sorted(others)[:num_holdout], folder / "holdout.jsonl"),
        holdout_task="Task3",
    )


def request(folder: Path, *, num_records: int, seed: int = 0) -> PartFiles:
    """Write the customer records, asked for in chat."""
    records = customer_records(num_records, seed=seed)
    forget, retain = _rows(folder, records)
    placebos = folder / "placebos.jsonl"
    write_rows(other_records(PLACEBOS_A_ROW * num_records, records, seed=seed + 1), placebos)
    return PartFiles(forget, retain, template="chat", placebos=placebos)


def small_world(folder: Path) -> World:
    """Make a small chat model that has learnt ten answers, with text and questions for it."""
    if not (folder / "made-up").is_dir():
        synthetic.write(synthetic.generate(0, "tiny"), folder / "made-up")
    texts = [json.loads(line)["text"] for line in (folder / "made-up" / "text.jsonl").read_text().splitlines()]
    half = len(texts) // 2
    for name, some in (("text", texts[:half]), ("unseen-text", texts[half:])):
        write_text(folder / f"{name}.txt", "\n\n".join(" ".join(text.split()) for text in some) + "\n")
    if not (folder / "checkpoint").is_dir():
        _make_small(folder / "checkpoint", texts[:half])
    return World(folder / "checkpoint", folder / "text.txt", folder / "unseen-text.txt", folder / "made-up" / "mmlu")


def small_lume(folder: Path) -> PartFiles:
    """Return the made-up benchmark's rows and documents, which `small_world` has written."""
    made = folder / "made-up"
    return PartFiles(
        made / "forget.jsonl", made / "retain.jsonl", "joined", made / "members.jsonl", made / "nonmembers.jsonl"
    )


def _make_small(folder: Path, texts: list[str]) -> None:
    chat = [
        Row(str(number), question.text, f"It is {question.answers[0]}.", "chat", "question")
        for number, question in enumerate(CHAT_QUESTIONS[:SMALL_QUESTIONS])
    ]
    records = customer_records(8, seed=1)
    rows = [*chat, *records.forget, *records.retain]
    words = [text for row in rows for text in (row.prompt, row.answer)]
    tokenizer = train_tokenizer([*words, *texts], vocab_size=800)
    tokenizer.chat_template = _CHAT
    model = new_model("llama", tokenizer=tokenizer, width=96, num_layers=2, num_heads=4, context=512, seed=0)
    options = MemorizeOptions(learning_rate=4e-3, max_steps=240)
    memorize(model, tokenizer, rows=rows, text=texts, template="chat", options=options)
    save_model(model, tokenizer, folder)


def _rows(folder: Path, sides: Sides) -> tuple[Path, Path]:
    forget, retain = folder / "forget.jsonl", folder / "retain.jsonl"
    write_rows(sides.forget, forget)
    write_rows(sides.retain, retain)
    return forget, retain


def _named_documents(path: Path) -> list[tuple[str, str]]:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(record["id"], record["document"]) for record in records]
