"""The device that is not there: what it computes, what it refuses, and what it counts."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from letheon import Row
from letheon.engine import values
from pretend_device import DEVICE, DeviceMixError, OnDevice, PretendDevice
from running import run, short_run


def test_its_tensors_have_values_and_gradients(device: PretendDevice) -> None:
    states, weight = torch.tensor([[1.0, 2.0]], device=DEVICE), nn.Parameter(torch.tensor([[3.0], [4.0]]).to(DEVICE))
    (states @ weight).square().sum().backward()
    assert weight.grad is not None
    assert weight.grad.device == DEVICE
    assert weight.grad.tolist() == [[22.0], [44.0]]  # 2 (1 * 3 + 2 * 4) times 1 and 2


def test_a_view_of_one_is_written_to_as_a_view(device: PretendDevice) -> None:
    values = torch.zeros(2, 2, device=DEVICE)
    values[1].add_(3)
    assert values.tolist() == [[0, 0], [3, 3]]


@pytest.mark.parametrize(
    "mix",
    [
        lambda values: values + torch.ones(2),
        lambda values: values[torch.tensor([1])],
        lambda values: torch.ones(2, 2)[values.long()],
        lambda values: torch.cat([values, torch.ones(2)]),
        lambda values: torch.stack([values.sum(), torch.tensor(1.0)]),  # a GPU's kernel takes scalars of elements only
        lambda values: nn.functional.linear(values[None], torch.ones(1, 2)),
    ],
)
def test_it_refuses_tensors_of_the_host(mix: Any, device: PretendDevice) -> None:
    with pytest.raises(DeviceMixError, match=r"at test_pretend_device\.py:\d+"):
        mix(torch.ones(2, device=DEVICE))


def test_it_takes_scalars_of_the_host_as_a_gpu_does(device: PretendDevice) -> None:
    assert (torch.ones(2, device=DEVICE) * torch.tensor(3.0)).tolist() == [3, 3]


def test_it_counts_what_crosses_and_what_makes_the_host_wait(device: PretendDevice) -> None:
    with device.watched() as traffic:
        there = torch.ones(2, 3).to(DEVICE)
        there.copy_(torch.zeros(2, 3))
        there.sum() + torch.zeros(3, device=DEVICE)
    assert [one.shape for one in traffic.to_device] == [(2, 3), (2, 3)]
    assert traffic.to_host == []
    with device.watched() as traffic:
        float(there.sum())
        there.tolist()
        there.nonzero()
        there[there > 0]
        bool((there == 0).all())
    assert len(traffic.to_host) == 5
    assert traffic.to_device == []


def test_shared_and_copied_parameters_stay_what_they_are(device: PretendDevice) -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    both = nn.Sequential(first, second)
    device.move(both)
    assert first.weight is second.weight
    copied = copy.deepcopy(first)
    assert isinstance(copied.weight, OnDevice)
    assert isinstance(copied.weight, nn.Parameter)
    assert copied.weight.tolist() == first.weight.tolist()


def test_a_tensor_forgotten_on_the_host_ends_a_run(
    tmp_path: Path,
    rows: list[Row],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    device: PretendDevice,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = short_run(tmp_path, rows, model, tokenizer)
    monkeypatch.setattr(values, "bring", lambda tensor, _: tensor)
    with pytest.raises(DeviceMixError, match=r"at \w+\.py"):
        run(given, epochs=1)
