"""Which devices there are, and what is refused."""

from typing import Any

import pytest
import torch

from letheon import devices
from letheon.devices import available_devices, check_device, choose_device, kept_random_state, kind_of
from letheon.errors import SettingsError


@pytest.fixture
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("_two_gpus")
def test_gpus_are_named_one_by_one_and_the_first_is_the_default() -> None:
    assert available_devices() == ["cpu", "cuda:0", "cuda:1"]
    for name in (None, "cpu", "cuda", "cuda:1"):
        check_device(name)
    assert str(choose_device(None)) == "cuda"
    assert kind_of("cuda:1") == "cuda"


@pytest.mark.usefixtures("_two_gpus")
@pytest.mark.parametrize("name", ["cuda:2", "xpu", "mps", "cuda:10"])
def test_one_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"finds here \(cpu, cuda:0, cuda:1\), got '{name}'"):
        check_device(name)


def test_without_a_gpu_there_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(choose_device(None)) == "cpu"


def test_the_random_state_is_put_back() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with kept_random_state():
        torch.manual_seed(5)
        torch.rand(3)
    assert torch.equal(torch.rand(2), expected)


def test_a_chosen_gpu_is_the_one_that_libraries_use(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", used.append)
    devices.use_device(torch.device("cuda:1"))
    devices.use_device(torch.device("cpu"))
    assert used == [1]
