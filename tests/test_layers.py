"""The order of the layers: who may import whom, and which modules do without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "letheon"

BASE = {"errors", "storage", "progress", "signals", "launcher", "processes", "devices", "settings"}
ALLOWED = {
    "errors": set(),
    "storage": {"errors"},
    "progress": {"storage"},
    "signals": set(),
    "launcher": {"errors"},
    "processes": {"errors", "launcher", "signals"},
    "devices": {"errors", "launcher"},
    "endings": {"errors", "signals", "storage"},
    "settings": {"errors", "storage"},
    "recipes": {"errors", "settings"},
    "data": BASE,
    # Results as data: whoever reads them does so without a suite or a model.
    "scores": {"errors", "storage", "data.rows"},
    "objective": {*BASE, "data"},
    "model": {*BASE, "data"},
    "engine": {*BASE, "data", "objective.values", "model"},
    # The loop trains any job: of objectives it knows that there is a loss, and of settings nothing.
    "training": {
        "errors", "storage", "progress", "signals", "processes", "devices", "data", "objective.values",
        "objective.control", "model",
    },
    "memorizing": {*BASE, "data", "objective.values", "model", "engine", "training"},
    "unlearning": {
        *BASE, "data", "scores.fluency", "scores.numbers", "objective", "model", "engine", "training",
        "evaluation.fluency", "evaluation.generation",
    },
    "evaluation": {*BASE, "data", "scores", "model", "engine"},
    # Reports are made from files; of the other layers they know the schemas, scoring without a model, and who a row is.
    "report": {
        "errors", "storage", "settings", "data.forms", "data.rows", "scores", "evaluation.registry",
        "evaluation.suite", "evaluation.rescoring",
    },
    "scoring": {*BASE, "data", "scores", "model", "engine", "training", "unlearning", "evaluation", "report.files"},
    "auditing": {*BASE, "data", "scores", "model", "engine", "training", "memorizing", "evaluation", "report.files"},
    "studies": {
        *BASE, "endings", "recipes", "data", "objective", "model", "engine", "training", "unlearning", "evaluation",
        "scores", "report",
    },
    "api": {
        *BASE, "data", "model", "engine", "training", "memorizing", "unlearning", "evaluation", "scores", "scoring",
        "report", "studies", "auditing",
    },
    "purging": {"errors", "storage", "evaluation", "report", "studies", "api"},
    "semeval": {*BASE, "recipes", "data", "model", "unlearning"},
    "cli": {
        *BASE, "endings", "recipes", "data", "objective", "training", "memorizing", "unlearning",
        "evaluation", "scores", "scoring", "report", "studies", "auditing", "purging", "api",
    },
    "__init__": {"errors", "settings", "data.rows", "studies.spec", "api"},
    "__main__": {"cli"},
}  # fmt: skip
"""Whom each layer may import; all that there are, so that a new one is given its place."""


def layer_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports_of(path: Path, *, names: bool = False) -> list[str]:
    """Letheon modules that a file imports, and with `names` what it imports of them, without the leading package."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "letheon":
            module = node.module.removeprefix("letheon.")
            found += [module, *(f"{module}.{alias.name}" for alias in node.names if names)]
        elif isinstance(node, ast.Import):
            found += [alias.name.removeprefix("letheon.") for alias in node.names if alias.name.startswith("letheon.")]
    return found


def test_every_module_has_its_layer() -> None:
    assert {layer_of(path) for path in SOURCE.rglob("*.py")} == ALLOWED.keys()


def test_a_loss_is_imported_where_methods_are_made_of_it_and_nowhere_else() -> None:
    losses = {f"objective.{name}" for name in ("forget", "retain", "preference", "activation", "losses")}
    found = {path.parent.name for path in SOURCE.rglob("*.py") if losses.intersection(imports_of(path, names=True))}
    assert found == {"objective"}


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


LIGHT = (
    "letheon",
    "letheon.settings",
    "letheon.data.rows",
    "letheon.objective.catalogue",
    "letheon.evaluation.registry",
    "letheon.evaluation.suites.lume.official",
    "letheon.scores.results",
    "letheon.report.page",
    "letheon.studies.spec",
    "letheon.studies.report",
    "letheon.cli.main",
    "letheon.cli.method_help",
    "letheon.cli.methods_page",
)


def test_light_modules_do_without_torch() -> None:
    code = "import importlib, sys\n"
    code += f"for module in {LIGHT}:\n"
    code += "    importlib.import_module(module)\n"
    code += "    assert not {'torch', 'transformers'} & set(sys.modules), module\n"
    done = subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
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
        "AuditSettings",
        "EvaluateSettings",
        "LetheonError",
        "MemorizeSettings",
        "RedialSettings",
        "Row",
        "StudySettings",
        "UnlearnSettings",
        "audit",
        "dial",
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
