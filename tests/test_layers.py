"""The order of the layers: who may import whom, and which modules do without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "letheon"

BASE = {
    "errors",
    "settings",
    "files",
    "progress",
    "provenance",
    "visible",
    "yaml_text",
    "cache",
    "locks",
    "fingerprints",
    "hub",
    "outside",
    "signals",
    "endings",
}
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "cache": set(),
    "fingerprints": set(),
    "hub": set(),
    "outside": {"errors", "files"},
    "locks": {"errors", "files"},
    "visible": set(),
    "progress": {"visible"},
    "yaml_text": set(),
    "provenance": {"errors"},
    "validation": {"errors"},
    "settings": {"errors", "validation", "yaml_text"},
    "recipes": {"errors", "settings"},
    "data": {*BASE},
    "objective": {*BASE, "data"},
    "model": {*BASE, "data", "objective"},
    "training": {*BASE, "data", "objective", "model"},
    "evaluation": {*BASE, "data", "model"},
    "sweep": {*BASE, "recipes", "data", "objective", "model", "training", "evaluation", "report"},
    # Reports are made from files; of the other layers they know the schemas, scoring without a model, and who a row is.
    "report": {
        "errors",
        "files",
        "fingerprints",
        "hub",
        "visible",
        "yaml_text",
        "data.forms",
        "data.rows",
        "evaluation.results",
        "evaluation.rescoring",
    },
}


def layer_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports_of(path: Path) -> list[str]:
    """Letheon modules that a file imports, without the leading package."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "letheon":
            found.append(node.module.removeprefix("letheon."))
        elif isinstance(node, ast.Import):
            found += [alias.name.removeprefix("letheon.") for alias in node.names if alias.name.startswith("letheon.")]
    return found


@pytest.mark.parametrize("layer", list(ALLOWED))
def test_layers_import_only_from_their_left(layer: str) -> None:
    checked = 0
    for path in SOURCE.rglob("*.py"):
        if layer_of(path) != layer:
            continue
        checked += 1
        for module in imports_of(path):
            own = module.split(".")[0] == layer
            allowed = any(module == name or module.startswith(f"{name}.") for name in ALLOWED[layer])
            assert own or allowed, f"{path.relative_to(SOURCE)} imports letheon.{module}"
    assert checked


@pytest.mark.parametrize(
    "module",
    [
        "letheon",
        "letheon.cli.main",
        "letheon.settings",
        "letheon.data.rows",
        "letheon.evaluation.official",
        "letheon.report.page",
        "letheon.studies.report",
        "letheon.studies.spec",
    ],
)
def test_light_modules_do_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_imports_neither_figures_nor_statistics() -> None:
    heavy = {"matplotlib", "sklearn", "pandas", "pyarrow", "scipy.stats", "optuna", "datasets", "tensorboard"}
    code = "import gc, sys; from letheon.cli.main import load_libraries\n"
    code += "load_libraries(); assert gc.isenabled() and gc.get_freeze_count()\n"
    code += f"sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_public_names() -> None:
    import letheon

    assert letheon.__all__ == [
        "EvaluateSettings",
        "LetheonError",
        "MemorizeSettings",
        "Row",
        "StudySettings",
        "UnlearnSettings",
        "evaluate",
        "memorize",
        "read_rows",
        "study",
        "unlearn",
        "unlearn_population",
        "write_report",
    ]
    for name in letheon.__all__:
        assert getattr(letheon, name).__module__.startswith("letheon.")
    with pytest.raises(AttributeError, match="forget"):
        _ = letheon.forget
