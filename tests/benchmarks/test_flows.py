"""What is compared in `benchmarks.flows` computes the same, with the same gradients."""

import importlib.util
import sys

import pytest
import torch

from benchmarks import flows
from invtorch.planning import measure_memory

IMAGE, HIDDEN = (1, 8, 8), 6
# of normflows
pytestmark = pytest.mark.filterwarnings("ignore:torch.lu is deprecated")


@pytest.mark.parametrize("form", flows.PEERS)
def test_contenders_compute_the_same(form) -> None:
    runs, x = flows.prepared(3, form, IMAGE, HIDDEN)
    errors = flows.compared(runs, x)
    assert len(errors) == 3 + (importlib.util.find_spec(form) is not None)
    inputs = x.requires_grad_()
    gradients = [torch.autograd.grad(run(inputs).sum(), x)[0] for run in runs.values()]
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", flows.PEERS)
def test_memory_is_flat_here_and_grows_with_plain_autograd(form) -> None:
    def peaks(name: str) -> list[int]:
        found = []
        for steps in (4, 16):
            runs, x = flows.prepared(steps, form, IMAGE, HIDDEN)
            flows.step(runs[name], x)
            found.append(measure_memory(lambda: flows.step(runs[name], x)).peak)  # noqa: B023
        return found

    few, many = peaks("invtorch, anchors=0")
    assert many < 1.3 * few
    few, many = peaks("plain autograd")
    assert many > 2 * few


def test_log_probabilities_that_differ_are_refused() -> None:
    runs, x = flows.prepared(1, "nflows", IMAGE, HIDDEN)
    runs["wrong"] = lambda x: runs["plain autograd"](x) * 1.01
    with pytest.raises(RuntimeError, match="differ"):
        flows.compared(runs, x)


def test_without_a_peer_it_is_left_out(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "nflows", None)  # its import fails
    assert flows.versions()["nflows"] is None
    runs, _ = flows.prepared(1, "nflows", IMAGE, HIDDEN)
    assert "nflows" not in runs
