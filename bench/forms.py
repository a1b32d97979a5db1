"""Rows in the form that the model knows: one small checkpoint for each kind of chat template and of plain text.

    python -m bench.forms --out DIR [--families mistral qwen3 ...] [--markdown docs/forms.md]

Each checkpoint memorises made-up rows as the family writes them, the template filled in by transformers alone. Then
`letheon unlearn` is run without settings, and both models are asked in two ways: the run's own recall, and whole greedy
generations after the tokenizer's `apply_chat_template` with the generation prompt, or after the plain prompt, with
nothing of Letheon in between.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from letheon.data.benchmarks.synthetic import generate
from letheon.data.forms import TEXT_FORMS
from letheon.data.rows import Row, write_rows
from letheon.memorizing.memorize import memorize
from letheon.memorizing.options import MemorizeOptions
from letheon.model.architectures import new_model, train_tokenizer
from letheon.model.loading import save_model
from letheon.report.tables import Table, to_markdown
from letheon.storage.files import write_text

NUM_STEPS = 600
"""Steps in which a checkpoint learns its rows by heart."""
NUM_ROWS = 24
"""Rows to forget, and as many to keep."""

_USER = "{% if m['role'] == 'user' %}"


@dataclass(frozen=True, slots=True)
class Family:
    """A way in which checkpoints know rows."""

    title: str
    chat: str | None = None
    """A chat template; None for plain text."""
    form: str = "joined"
    """The text form, where there is no chat template."""
    special: tuple[str, ...] = ()
    """Tokens that the template writes and the tokenizer never splits."""
    end: str | None = None
    """What ends a turn, where that is not the tokenizer's end of sequence; generation stops there too."""
    prompt_end: str = ""
    """What every prompt ends with."""
    is_dated: bool = False
    """Whether the template writes the date, which the run is told then: the day on which the rows were memorised."""


FAMILIES = {
    "mistral": Family(
        "Mistral: a space before the answer",
        "{{ bos_token }}{% for m in messages %}" + _USER + "{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
        special=("[INST]", "[/INST]"),
    ),
    "llama-2": Family(
        "Llama 2: spaces around a stripped answer",
        "{% for m in messages %}" + _USER + "{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    ),
    "qwen3": Family(
        "Qwen3: an empty think block before the last answer",
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
        "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        special=("<|im_start|>", "<|im_end|>"),
        end="<|im_end|>",
    ),
    "alpaca": Family(
        "Alpaca: a header and no generation prompt",
        "{% for m in messages %}" + _USER + "{{ '### Instruction:\\n' + m['content'] + '\\n\\n' }}"
        "{% else %}{{ '### Response:\\n' + m['content'] + '\\n\\n' }}{% endif %}{% endfor %}",
    ),
    "gemma": Family(
        "Gemma: turns end in a token of their own",
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\\n' + m['content'] | trim }}"
        "{{ '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        special=("<start_of_turn>", "<end_of_turn>"),
        end="<end_of_turn>",
    ),
    "phi-3": Family(
        "Phi-3: turns end in <|end|>",
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
        special=("<|user|>", "<|assistant|>", "<|end|>"),
        end="<|end|>",
    ),
    "llama-3": Family(
        "Llama 3.1: the date in a system turn (`--date`)",
        "{{ bos_token + '<|start|>system<|stop|>\\n\\nToday Date: ' + strftime_now('%d %b %Y') + '<|eot|>' }}"
        "{% for m in messages %}{{ '<|start|>' + m['role'] + '<|stop|>\\n\\n' + m['content'] | trim + '<|eot|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\\n\\n' }}{% endif %}",
        special=("<|start|>", "<|stop|>", "<|eot|>"),
        end="<|eot|>",
        is_dated=True,
    ),
    "zephyr": Family(
        "Zephyr: plain marks of turns",
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    ),
    "joined": Family("Prompt and answer joined by a space"),
    "space": Family("Prompts that end in a space", form="plain", prompt_end=" Answer: "),
    "question-answer": Family("Question and answer tags (TOFU)", form="question-answer"),
    "neko": Family("Headings (NEKO)", form="neko"),
    "inst": Family("[INST] tags, no space after them (TOFU)", form="inst"),
}


@dataclass(frozen=True, slots=True)
class Found:
    """What came of one family: shares of rows, 0 to 1, forget rows first."""

    family: Family
    chosen: str
    before: tuple[float, float]
    after: tuple[float, float]
    asked_before: tuple[float, float]
    asked_after: tuple[float, float]


def main() -> None:
    """Do the families and write the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.forms", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--families", nargs="*", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--markdown", type=Path, help="write the table, with what it says, to this file")
    given = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    found = []
    for name in given.families:
        found.append(measure(FAMILIES[name], given.out / name))
        print(to_markdown(table([found[-1]])), flush=True)
    text = to_markdown(table(found))
    print(text)
    if given.markdown is not None:
        write_text(given.markdown, f"{_TEXT.format(num_rows=NUM_ROWS)}\n{text}")


def measure(family: Family, out: Path) -> Found:
    """Make a checkpoint that knows rows in the family's form, make it forget half of them, and ask both models."""
    forget, retain = _rows(family)
    target, run = out / "target", out / "run"
    if not (target / "model.safetensors").exists():
        out.mkdir(parents=True, exist_ok=True)
        make_target(family, [*forget, *retain], target)
    write_rows(forget, out / "forget.jsonl")
    write_rows(retain, out / "retain.jsonl")
    files = ["--model", target, "--forget", out / "forget.jsonl", "--retain", out / "retain.jsonl", "--out", run]
    if not (run / "provenance.json").exists():
        dated = ["--date", date.today().isoformat()] if family.is_dated else []
        command = [
            sys.executable,
            "-m",
            "letheon",
            "unlearn",
            "--no-evaluate",
            *map(str, files),
            *dated,
            "--trackers",
            "",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    record: dict[str, Any] = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    before, kept = record["before"], record["result"]["kept"]
    return Found(
        family=family,
        chosen=record["form"]["template"],
        before=(before["forget_recall"], before["retain_recall"]),
        after=(kept["forget_recall"], kept["retain_recall"]),
        asked_before=ask(family, target, forget, retain),
        asked_after=ask(family, run / "model", forget, retain),
    )


def make_target(family: Family, rows: list[Row], folder: Path) -> None:
    """Train a small model on the rows as the family writes them, from random weights."""
    tokenizer = train_tokenizer([f"{row.prompt} {row.answer}" for row in rows], vocab_size=1024)
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.special)})
    if family.chat is not None:
        tokenizer.bos_token = tokenizer.eos_token
        tokenizer.chat_template = family.chat
    model = new_model(
        "llama", tokenizer=tokenizer, width=128, num_layers=3, num_heads=4, context=256, intermediate=384, seed=0
    )
    if family.end is not None:
        ends = [tokenizer.get_vocab()[name] for name in (family.end, str(tokenizer.eos_token))]
        assert model.generation_config is not None
        model.generation_config.eos_token_id = ends
    texts = [Row(row.id, "", whole_text(family, tokenizer, row), row.task, "completion") for row in rows]
    options = MemorizeOptions(max_steps=NUM_STEPS, learning_rate=3e-3, answer_weight=1.0)
    memorize(model, tokenizer, rows=texts, template="plain", options=options)
    save_model(model, tokenizer, folder)


def whole_text(family: Family, tokenizer: PreTrainedTokenizerBase, row: Row) -> str:
    """Return the text in which a checkpoint of the family knows a row."""
    if family.chat is None:
        rendered = TEXT_FORMS[family.form](row.prompt, row.answer)
        return rendered.before + rendered.answer
    messages = [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.answer}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


@torch.no_grad()
def ask(family: Family, folder: Path, forget: list[Row], retain: list[Row]) -> tuple[float, float]:
    """Return the share of forget and of retain rows whose answer is in what the model says, asked one by one."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    shares = []
    for rows in (forget, retain):
        num_given = 0
        for row in rows:
            if family.chat is not None:
                messages = [{"role": "user", "content": row.prompt}]
                text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            else:
                text = TEXT_FORMS[family.form](row.prompt, "").before
            ids = tokenizer(text.rstrip(" "), add_special_tokens=False, return_tensors="pt").input_ids
            said = tokenizer.decode(model.generate(ids, max_new_tokens=48, do_sample=False)[0, ids.shape[1] :])
            num_given += row.answer.strip() in said
        shares.append(num_given / len(rows))
    return shares[0], shares[1]


def _rows(family: Family) -> tuple[list[Row], list[Row]]:
    made = generate(0)
    sets = []
    for rows in (made.forget, made.retain):
        questions = [row for row in rows if row.kind == "question"][:NUM_ROWS]
        sets.append([Row(r.id, r.prompt + family.prompt_end, r.answer, r.task, r.kind) for r in questions])
    return sets[0], sets[1]


def table(found: list[Found]) -> Table:
    """Return the families as rows."""
    columns = ("Known as", "auto chose", "recall before", "after", "asked plainly before", "after")
    rows = tuple(
        (one.family.title, one.chosen, *(_pair(p) for p in (one.before, one.after, one.asked_before, one.asked_after)))
        for one in found
    )
    return Table("Forms", columns, rows, notes=("Each cell: forget rows / retain rows, shares from 0 to 1.",))


def _pair(shares: tuple[float, float]) -> str:
    return f"{shares[0]:.2f} / {shares[1]:.2f}"


_TEXT = """\
# Forms

A model knows a row in the form in which it was trained on it. `--template auto`, the default, tries every form that
the tokenizer allows on a few rows and takes the one in which the answers have the lowest loss. `letheon unlearn
--help` lists the forms. `chat` renders the whole conversation with the tokenizer's own template, answer included, and
then finds the answer in the text. Spaces, empty think blocks, headers and tokens that end a turn are therefore where
the model expects them. Text that the template writes between its generation prompt and the answer is context in
training. Such rows are scored with and without this text, and the worse score counts. Where a run holds the model to
general text (`--general`), it holds it to this text too, in up to 32 of the rows, so that the model still writes it.

The table shows {num_rows} made-up questions to forget and {num_rows} to keep. Small models (0.8 M parameters) were
trained on them in the forms of common chat templates and in plain text. Each run was given a model and both files of
rows, and no settings but `--date` where the template writes the date, so that it chose the form itself. "Recall" is the
run's own score. "Asked plainly" does not use Letheon: it is the share of rows whose answer occurs in the text that
`generate` returns for the tokenizer's `apply_chat_template(..., add_generation_prompt=True)`, or for the prompt alone.

Made by `python -m bench.forms --out DIR --markdown docs/forms.md`.
"""


if __name__ == "__main__":
    main()
