"""The demo from end to end in its smallest size, on three architectures."""

from pathlib import Path
from statistics import fmean

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM

from letheon.cli.demo import run_demo
from letheon.errors import OutputError
from letheon.evaluation.suites.lume.results import LumeResults
from letheon.settings import DemoSettings


def mean_of(results: LumeResults, split: str) -> float:
    """Mean of a split's six official scores, as measured."""
    found = [value for name, value in results.task_terms.items() if name.startswith(split)]
    assert len(found) == 6
    return fmean(found if split == "retain" else [1 - value for value in found])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["olmo", "llama", "gpt2"])
def test_a_model_forgets_and_keeps(architecture: str, tmp_path: Path) -> None:
    console = Console(record=True, width=120)
    settings = DemoSettings.of({"out": tmp_path / "demo", "size": "tiny", "architecture": architecture})
    report = run_demo(settings, console=console)
    before, after = LumeResults.of(report.before.results), LumeResults.of(report.after.results)
    assert mean_of(before, "forget") > 0.95
    assert mean_of(before, "retain") > 0.95
    assert mean_of(after, "forget") < 0.3
    assert mean_of(after, "retain") > 0.7
    for results in (before, after):
        assert results.mia is not None
        assert results.mmlu is not None
        assert results.final is not None
        assert results.missing == {}
    printed = console.export_text()
    assert "Task aggregate" in printed
    assert str(report.page) in printed.replace("\n", "")
    assert "<svg" in report.page.read_text(encoding="utf-8")
    AutoModelForCausalLM.from_pretrained(report.run.model)
    with pytest.raises(OutputError, match="already holds files"):
        run_demo(settings, console=console)
