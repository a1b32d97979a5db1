"""Peak memory of NEKO in full fine-tuning: one model, not two.

    python -m bench.memory --out DIR

Trains every weight of a random OLMo-shaped model with gradient ascent + KL in a process of its own and compares the
process's peak with what training any model takes: weights, gradients and Adam's two moments, 16 bytes a parameter.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from letheon.data.benchmarks.synthetic import generate
from letheon.data.rows import write_rows
from letheon.model.architectures import new_model, train_tokenizer
from letheon.model.loading import save_model

WIDTH, LAYERS, HEADS = 1280, 12, 16
MAX_BATCH_TOKENS = 256


def main() -> None:
    """Make the model, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    imports = imports_alone()  # first: a process's peak counts what its parent held when it began
    parameters = make_model(out)
    peak = {
        "full fine-tuning, ga + kl (neko)": run(out, "neko", ["--method", "neko"]),
        "full fine-tuning, ga alone": run(out, "ga", ["--method", "ga", "--adapt", "weights"]),
        "imports alone": imports,
    }
    needed = 16 * parameters
    print(f"{parameters / 1e6:.0f} M parameters; weights, gradients and moments {needed / 2**30:.2f} GiB")
    print("| | peak, GiB | of weights, gradients and moments |\n|---|---|---|")
    for name, value in peak.items():
        print(f"| {name} | {value / 2**30:.2f} | {value / needed:.2f} |")


def make_model(out: Path) -> int:
    """Write a random model and made-up rows; return its number of parameters."""
    made = generate(0, size="tiny")
    write_rows(made.forget, out / "forget.jsonl")
    write_rows(made.retain, out / "retain.jsonl")
    tokenizer = train_tokenizer([f"{row.prompt} {row.answer}" for row in (*made.forget, *made.retain)], vocab_size=8192)
    model = new_model(
        "olmo", tokenizer=tokenizer, width=WIDTH, num_layers=LAYERS, num_heads=HEADS, intermediate=4 * WIDTH,
        context=512, seed=0,
    )  # fmt: skip
    save_model(model, tokenizer, out / "model")
    return sum(parameter.numel() for parameter in model.parameters())


def run(out: Path, name: str, method: list[str]) -> int:
    """Return the peak bytes of a run of a few steps."""
    folder = out / name
    files = ["--model", out / "model", "--forget", out / "forget.jsonl", "--retain", out / "retain.jsonl"]
    short = ["--max-steps", 3, "--batch-size", 8, "--max-batch-tokens", MAX_BATCH_TOKENS, "--checkpoint-epochs", 99]
    plain = ["--template", "joined", "--trackers", "", "--learning-rate", "1e-5", "--out", folder]
    command = [
        sys.executable,
        "-m",
        "letheon",
        "unlearn",
        "--no-evaluate",
        *map(str, [*files, *method, *short, *plain]),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    result = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["result"]
    return int(result["peak_memory_bytes"])


def imports_alone() -> int:
    """Return the peak bytes of a process that only loads what a run loads."""
    measure = "from letheon.storage.provenance import peak_memory_bytes; print(peak_memory_bytes())"
    code = f"import letheon.unlearning.run; {measure}"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout)


if __name__ == "__main__":
    main()
