"""How much memory each process takes to load a model whole, and with --shard: growth of the peak of resident memory.

    python -m bench.shares --tokenizer DIR [--processes 2 3] [--layers 12]

The model is a Llama of width 1024 in float32, made on the spot with the tokenizer of any checkpoint.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from letheon.launcher import place
from letheon.model.architectures import new_model
from letheon.model.loading import load_model, load_tokenizer, save_model
from letheon.processes import joined

HOW = ("whole", "shares")
_LOAD = "--load"


def main(arguments: list[str] | None = None) -> None:
    """Print the table, or, with --load, be one of the processes that load."""
    parser = argparse.ArgumentParser(prog="python -m bench.shares", description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument(_LOAD, nargs=3, metavar=("MODEL", "HOW", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.load:
        model, how, out = given.load
        _load(model, how, Path(out))
        return
    if given.tokenizer is None:
        parser.error("expected a folder with a tokenizer; give it by --tokenizer")
    with tempfile.TemporaryDirectory() as folder:
        size = make_model(given.tokenizer, Path(folder) / "model", num_layers=given.layers)
        print(f"a model of {size / 2**20:,.0f} MiB\n\n| processes | {' | '.join(HOW)} |\n|---|---|---|")
        for num in given.processes:
            found = (growths(Path(folder) / "model", how, num) for how in HOW)
            cells = (", ".join(f"{grown / 2**20:,.0f}" for grown in of_each) + " MiB" for of_each in found)
            print(f"| {num} | {' | '.join(cells)} |", flush=True)


def make_model(tokenizer: Path, folder: Path, *, num_layers: int) -> int:
    """Write a model with random weights to `folder`, and return their bytes."""
    loaded = load_tokenizer(str(tokenizer))
    model = new_model(
        "llama",
        tokenizer=loaded,
        width=1024,
        num_layers=num_layers,
        num_heads=8,
        intermediate=4096,
        context=128,
        seed=0,
    )
    save_model(model, loaded, folder)
    return sum(parameter.nbytes for parameter in model.parameters())


def growths(model: Path, how: str, num: int) -> Sequence[int]:
    """Return by how many bytes the peak of each of `num` processes grows while they load a model, by rank."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num)]
    with tempfile.TemporaryDirectory() as out:
        job = ["-m", "bench.shares", _LOAD, str(model), how, out]
        subprocess.run([*launch, *job], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=sys.stderr)
        return [int((Path(out) / str(rank)).read_text(encoding="utf-8")) for rank in range(num)]


def _load(model: str, how: str, out: Path) -> None:
    tokenizer = load_tokenizer(model)
    with joined():
        before = _peak()
        load_model(model, tokenizer=tokenizer, shard=how == "shares")
        (out / str(place().rank)).write_text(str(_peak() - before), encoding="utf-8")


def _peak() -> int:
    """The most bytes that were resident in this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
