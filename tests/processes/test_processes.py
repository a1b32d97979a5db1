"""The place of a process among others, and how work is shared, as far as one process can tell."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from letheon.cli.main import cli
from letheon.data.packing import pack
from letheon.data.sequences import TokenSequence
from letheon.devices import check_device
from letheon.errors import SettingsError
from letheon.launcher import Place, place
from letheon.processes import added, from_first, highest, in_turn, shared, shares_by_size
from letheon.training.randomness import dropped_by_row
from letheon.training.together import add_up

LAUNCHED = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"}


def launched(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> None:
    for name, value in {**LAUNCHED, **changed}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)


def test_the_launcher_says_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch)
    assert place() == Place(rank=1, size=3, local_rank=0)
    assert not place().is_first
    launched(monkeypatch, WORLD_SIZE=None)
    assert place() == Place()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"RANK": None, "MASTER_PORT": None}, "RANK, MASTER_PORT are not set"),
        ({"RANK": "3"}, "expected 0 to 2 of WORLD_SIZE 3, got 3"),
        ({"RANK": "one"}, "expected whole numbers"),
    ],
)
def test_half_a_launcher_is_refused(changed: dict[str, str | None], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, **changed)
    with pytest.raises(SettingsError, match=said):
        place()


def test_one_device_for_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch)
    check_device("cpu")
    with pytest.raises(SettingsError, match="each of the 3 processes takes the device of its own number, got 'cuda:1'"):
        check_device("cuda:1")


def test_half_a_launcher_is_a_mistake_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "letheon", "evaluate", "--model", "x", "--forget", "x", "--retain", "x", "--out", "x"],
        env={**os.environ, "WORLD_SIZE": "2"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "letheon: error: WORLD_SIZE is 2" in done.stderr


def test_other_commands_run_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch)
    done = CliRunner().invoke(cli, ["study", "kl", "--out", "x"])
    assert isinstance(done.exception, SettingsError)
    assert "letheon study runs in one process, but the launcher started 3" in str(done.exception)


def test_alone_each_function_is_the_plain_computation() -> None:
    assert shared([3, 1, 2], lambda item: item * 2) == [6, 2, 4]
    heard: list[tuple[int, int]] = []
    shared(["ab", "c"], len, counts=[2, 1], progress=lambda done, total: heard.append((done, total)))
    assert heard == [(2, 3), (3, 3)]
    assert from_first(lambda: "x") == "x"
    assert in_turn(lambda: "x") == "x"
    assert highest(3, 0) == (3, 0)
    assert torch.equal(added(torch.arange(3.0)), torch.arange(3.0))


def test_the_largest_goes_to_whoever_has_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letheon.processes._here", Place(0, 2))
    # 9 goes to the first, 7 to the second, 4 to the second (11), 1 to the first (10).
    assert shares_by_size([4, 9, 1, 7]) == [[1, 2], [0, 3]]
    assert shares_by_size([5]) == [[0], []]
    assert shares_by_size([]) == [[], []]


def test_gradients_terms_and_counts_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a second process that has the term "b" and no gradient, beside this one that has "a" and one."""
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1, 2))]
    parameters[0].grad = torch.tensor([1.0, 2.0])
    other = torch.tensor([0.0, 5.0, 0.0, 0.0, 1.0, 0.0, 40.0, 0.0, *[0.0] * 4])
    monkeypatch.setattr("letheon.training.together.added", lambda values: values + other)
    parts: dict[str, Any] = {"a": torch.tensor(3.0)}
    sums, num_tokens = add_up(parameters, ("a", "b", "c"), parts, 2)
    assert {name: None if part is None else float(part) for name, part in sums.items()} == {"a": 3, "b": 5, "c": None}
    assert num_tokens == 42
    assert [p.grad.tolist() for p in parameters if p.grad is not None] == [[1.0, 2.0], [[0.0, 0.0]]]


def test_a_row_drops_the_same_in_any_company() -> None:
    dropout = nn.Dropout(0.5).train()
    rows = [TokenSequence(tuple(range(length)), 1) for length in (5, 3, 4)]

    def dropped(numbers: list[int]) -> list[torch.Tensor]:
        batch = pack([rows[n] for n in numbers], is_forget=[True] * len(numbers), row_index=numbers)
        with dropped_by_row([dropout], batch, seed=1, step=2):
            found = dropout(torch.ones(1, batch.num_tokens, 8))
        return list(found[0].split([len(rows[n].input_ids) for n in numbers]))

    whole, other = dropped([0, 1, 2]), dropped([2, 1])
    assert torch.equal(whole[1], other[1])
    assert torch.equal(whole[2], other[0])
    assert not torch.equal(whole[1], whole[0][:3])
    assert set(torch.cat(whole).unique().tolist()) == {0.0, 2.0}
