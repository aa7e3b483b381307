"""Bytes are counted where they are asked for."""

import pytest
import torch

from invtorch.planning import Memory, measure_memory
from tests.devices import ON_THE_CPU

pytestmark = ON_THE_CPU


def allocate(device: str = "cpu") -> torch.Tensor:
    torch.ones(512, device=device)  # freed at once
    return torch.ones(256, device=device)


def test_bytes_on_the_cpu_count_whatever_else_there_is(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert measure_memory(allocate) == Memory(peak=2048, live=1024)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_bytes_on_a_gpu() -> None:
    on_gpu = measure_memory(lambda: allocate("cuda"), device="cuda")
    assert on_gpu == Memory(peak=2048, live=1024)


def test_other_devices_cannot_be_counted() -> None:
    with pytest.raises(ValueError, match="device is 'meta', but memory can be"):
        measure_memory(allocate, device="meta")
