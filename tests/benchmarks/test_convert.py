"""What `benchmarks.convert` compares begins and learns alike."""

import copy

import pytest
import torch

from benchmarks import convert

pytest.importorskip("sklearn", reason="scikit-learn is not installed")


@pytest.fixture(scope="module")
def data():
    """Return a few digits for training, and the others."""
    training, testing = convert.Digits.load()
    few = 2 * convert.BATCH
    return convert.Digits(training.images[:few], training.labels[:few]), testing


MAKERS = {
    "ResNet": lambda: convert.ResNet(depth=6, channels=4),
    "Transformer": lambda: convert.Transformer(depth=6, width=8),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_checkpointed_model_learns_as_the_plain_one(name, data) -> None:
    plain = MAKERS[name]()
    other = convert.converted(plain, "checkpoint")
    for model in (plain, other):
        convert.train(model, data[0], epochs=2)
    assert [*plain.state_dict()] == [*other.state_dict()]
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert convert.accuracy(plain, data[1]) == convert.accuracy(other, data[1])


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kind", convert.OPTIONS)
def test_a_converted_model_has_the_gradients_of_its_own_function(name, kind, data):
    model = convert.converted(MAKERS[name]().double(), kind).eval()
    batch = convert.Digits(data[0].images[:4].double(), data[0].labels[:4])
    convert.step(model, batch)
    found = [p.grad.clone() for p in model.parameters()]
    for blocks in [m for m in model.modules() if hasattr(m, "options")]:
        blocks.options["memory"] = "store"
        blocks._segments = []  # they are made anew
    model.zero_grad()
    convert.step(model, batch)
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", MAKERS)
def test_memory_is_counted_on_a_copy(name, data) -> None:
    model = MAKERS[name]()
    before = copy.deepcopy(model.state_dict())
    plain = convert.peak(model, data[0])
    assert convert.peak(convert.converted(model, "momentum"), data[0]) < plain
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(p.grad is None for p in model.parameters())
