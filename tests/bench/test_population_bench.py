"""The benchmark of populations measures the same work in both ways."""

from pathlib import Path

import pytest
import torch
from bench.case import adapt, build_case
from bench.rows import workload
from bench.shapes import SHAPES, Shape, make_model

from bench import population
from letheon.report.tables import to_markdown

CPU = torch.device("cpu")
TINY = Shape("tiny", width=32, num_layers=2, num_heads=4, intermediate=64, vocab_size=400, is_tied=True, context=256)


def test_both_ways_take_a_step_of_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    work = workload(TINY, None, num_steps=3, batch_size=2)
    problem = build_case(adapt(make_model(TINY, dtype=torch.float32, device=CPU)), work).problem
    case = population.make_runs(problem, 3, batch_size=2)
    result = population.measure(case, "float32", shape_name="tiny", pairs=2, device=CPU, warmup=1)
    assert [run.step for run in [*case.alone, *case.together.values()]] == [3] * 6
    assert [run.num_tokens for run in case.alone] == [run.num_tokens for run in case.together.values()]
    assert result.runs == 3
    assert result.speedup.num == 2
    assert result.gradient_error <= 1e-5
    assert "| tiny | float32 |" in to_markdown(population.table([result]))
    monkeypatch.setattr(population, "gradient_error", lambda _: 0.5)
    with pytest.raises(SystemExit, match="other gradients"):
        population.measure(case, "float32", shape_name="tiny", pairs=1, device=CPU)


def test_the_command_writes_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    arguments = ["--shape", "tiny", "--runs", "1", "2", "--pairs", "1", "--rows", "8"]
    population.main([*arguments, "--json", str(tmp_path / "found.json")])
    assert capsys.readouterr().out.count("| tiny |") == 2
    assert '"runs": 2' in (tmp_path / "found.json").read_text()
