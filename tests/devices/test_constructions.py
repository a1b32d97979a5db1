"""Every tensor that is made where a model runs says on which device, or is meant for the host for a reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent.parent / "src" / "letheon"
CHECKED = ("engine", "evaluation", "scoring", "auditing", "unlearning", "training", "memorizing", "objective")
MAKERS = {
    "tensor", "as_tensor", "from_numpy", "scalar_tensor", "zeros", "ones", "empty", "full", "arange", "linspace", "eye",
    "rand", "randn", "randint", "randperm", "tril_indices", "triu_indices",
}  # fmt: skip
HOST = {
    "auditing/linear_probe.py": {
        "attack": "an order of tokens",
        "asked_tokens": "probes are trained on the host",
        "read_by_probe": "probes are trained on the host",
        "_labels": "probes are trained on the host",
    },
    "auditing/recognisability.py": {"profile": "describes losses that are read into numpy"},
    "engine/values.py": {
        "_losses": "the store lies on the host",
        "_spans": "indices into the store",
    },
    "evaluation/batches.py": {"padded": "brought over by its caller"},
    "evaluation/transformers_loop.py": {"_seeded": "a seed"},
    "evaluation/metrics/mmlu.py": {"letter_probabilities": "collects what batches give on the host"},
    "memorizing/job.py": {"_passes": "an order of rows", "_weights": "brought over with its batch"},
    "objective/activation.py": {"random_direction": "the same on every device"},
    "training/checkpoint.py": {"optimiser_tensors": "goes to a file"},
    "unlearning/general.py": {"_as_tensors": "goes to a file"},
    "unlearning/planning/trace.py": {"valueless_store": "a scalar that stands for the store's"},
}
"""Functions that make tensors of the host, by file, and why."""


def bare_makers(source: str) -> Iterator[tuple[str, int]]:
    """Yield function and line of each tensor that is made without a device and not brought to one at once."""
    yield from _bare(ast.parse(source), function="", is_brought=False)


def _bare(node: ast.AST, *, function: str, is_brought: bool) -> Iterator[tuple[str, int]]:
    if isinstance(node, ast.FunctionDef):
        function = node.name
    if isinstance(node, ast.Call):
        torch_name, _, maker = ast.unparse(node.func).partition(".")
        is_made = torch_name == "torch" and maker in MAKERS and not is_brought
        if is_made and "device" not in {key.arg for key in node.keywords}:
            yield function, node.lineno
    for child in ast.iter_child_nodes(node):
        yield from _bare(child, function=function, is_brought=_brings(node, child))


def _brings(node: ast.AST, child: ast.AST) -> bool:
    """Whether `node` brings the tensor that `child` makes to a device: bring(child, ..), or child.to(..)."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "bring":
        return child is node.args[0]
    return isinstance(node, ast.Attribute) and node.attr == "to" and child is node.value


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("x = torch.zeros(3)", [1]),
        ("x = torch.zeros(3, device=model.device)", []),
        ("x = bring(torch.tensor(rows), model.device)", []),
        ("x = torch.randn(3, generator=g).to(weight.device)", []),
        ("x = y.to(device) + torch.arange(3)", [1]),
        ("def f():\n    return [torch.full((2,), 1.0) for _ in y]", [2]),
    ],
)
def test_what_counts_as_made_without_a_device(source: str, lines: list[int]) -> None:
    assert [line for _, line in bare_makers(source)] == lines


def test_no_tensor_is_made_on_the_host_by_mistake() -> None:
    found: dict[str, set[str]] = {}
    for path in sorted(path for folder in CHECKED for path in (SOURCE / folder).rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        makers = list(bare_makers(path.read_text("utf-8")))
        for function, line in makers:
            assert function in HOST.get(name, {}), f"{name}:{line}: give the tensor a device, or a reason in HOST"
        if makers:
            found[name] = {function for function, _ in makers}
    assert found == {name: set(reasons) for name, reasons in HOST.items()}, "reasons without a tensor"
