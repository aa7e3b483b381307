"""Fingerprints: a few numbers that tell how far two states are apart."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from invtorch.engine.guard.blocks import blocks_of
from invtorch.engine.guard.fingerprint import PROBES, Last, fingerprint, mark
from invtorch.engine.guard.tolerance import distance

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]


def estimate(one, other) -> float:
    """Return how far two tensors are apart according to their fingerprints."""
    return distance(fingerprint((one,)), fingerprint((other,))).norm().item()


@st.composite
def shapes(draw) -> tuple[int, ...]:
    """Draw the shape of a state: 1 to 5 axes, odd sizes, up to 64 channels."""
    axes = draw(st.integers(1, 5))
    if axes == 1:
        return (draw(st.integers(1, 5000)),)
    most = {0: 1, 1: 3000, 2: 70, 3: 14}[axes - 2]
    space = draw(st.lists(st.integers(1, most), min_size=axes - 2, max_size=axes - 2))
    return (draw(st.integers(1, 16)), draw(st.integers(1, 64)), *space)


def one_of(shape, axes: int, generator) -> torch.Tensor:
    """Return ones at one drawn index of the first `axes` axes, or of the last ones."""
    error = torch.zeros(shape)
    chosen = shape[:axes] if axes >= 0 else shape[axes:]
    at = tuple(int(torch.randint(n, (), generator=generator)) for n in chosen)
    error[(*at,) if axes >= 0 else (..., *at)] = 1
    return error


def checkerboard(shape) -> torch.Tensor:
    axes = (torch.arange(n) for n in shape)
    return 1.0 - 2 * (sum(torch.meshgrid(*axes, indexing="ij")) % 2)


def low_rank(shape, generator) -> torch.Tensor:
    rows = math.prod(shape[:2]) if len(shape) > 1 else 1
    rank = int(torch.randint(1, 4, (), generator=generator))
    drawn = (
        torch.randn(rows, rank, generator=generator),
        torch.randn(rank, math.prod(shape) // rows, generator=generator),
    )
    return torch.matmul(*drawn).view(shape)


STRUCTURED = {
    "one entry": lambda shape, g: one_of(shape, len(shape), g),
    "a row": lambda shape, g: one_of(shape, len(shape) - 1, g),
    "a channel": lambda shape, g: one_of(shape, min(2, len(shape)), g),
    "a sample": lambda shape, g: one_of(shape, 1, g),
    "a column": lambda shape, g: one_of(shape, -1, g),
    "a position": lambda shape, g: one_of(shape, -max(len(shape) - 2, 1), g),
    "constant": lambda shape, g: torch.ones(shape),
    "checkerboard": lambda shape, g: checkerboard(shape),
    "low rank": low_rank,
}
FORMATS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "reversed": lambda x: x.mT.contiguous().mT,
    "every second": lambda x: torch.stack([x, x], -1)[..., 0],
}


@pytest.mark.parametrize("kind", STRUCTURED)
@given(shape=shapes(), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_the_size_of_a_structured_error_is_estimated(kind, shape, seed, data) -> None:
    """A wrong offset of a channel must be seen as well as noise is.

    The estimate is the root of a mean of `PROBES` squares, each close to normal: it is
    beyond a factor of 4 once in 10 million draws.
    """
    names = sorted(FORMATS) if len(shape) > 1 else ["contiguous"]
    form = FORMATS[data.draw(st.sampled_from(names))]
    dtype = data.draw(st.sampled_from(DTYPES))
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.device("cpu"):
        error = STRUCTURED[kind](shape, generator).to(dtype)
    true = error.to(torch.complex128).norm().item()
    found = estimate(form(error), torch.zeros_like(error))
    assert 1 / 4 < found / true < 4
    assert mark((form(error),))[:, -1].norm().item() == pytest.approx(found, rel=1e-4)


@given(shapes(), st.integers(0, 2**32 - 1))
def test_the_memory_format_does_not_matter(shape, seed) -> None:
    x = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
    for form in FORMATS.values() if len(shape) > 1 else ():
        torch.testing.assert_close(mark((form(x),)), mark((x,)), rtol=1e-4, atol=1e-4)


@given(shapes(), st.sampled_from([*DTYPES, torch.complex128, torch.int64]))
def test_a_state_has_a_row_for_each_block(shape, dtype) -> None:
    x = torch.zeros(shape, dtype=dtype)
    assert len(mark((x,))) == blocks_of(x).number


@given(st.integers(0, 2**32 - 1), shapes(), st.sampled_from(DTYPES))
def test_fingerprints_estimate_distances(seed, shape, dtype) -> None:
    torch.manual_seed(seed)
    x, noise = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype) / 8
    moved = x + noise
    true = (moved - x).to(torch.complex128).norm().item()
    assert estimate(x, moved) < 4 * true + 1e-12
    assert estimate(x, moved) >= true / 4


@example(250_001, 0.8800436264634082)  # rows are added up before they are projected
@given(st.integers(1, 70) | st.integers(250_000, 300_000), st.floats(0, 1))
def test_every_element_counts_alike(count, where) -> None:
    x = torch.zeros(1, 1, count, dtype=torch.float64)
    x[..., round(where * (count - 1))] = 1
    assert 0.7 < float(fingerprint((x,)).norm()) / math.sqrt(PROBES) < 1.3


@example((1, 22, 1518), 0)  # long blocks of both of the last axes
@example((3, 64, 4096), 1)
@given(shapes(), st.integers(0, 2**32 - 1))
def test_a_block_sees_its_own_elements_only(shape, seed) -> None:
    generator = torch.Generator("cpu").manual_seed(seed)
    x, blocks = torch.zeros(shape), blocks_of(torch.empty(shape))
    with torch.device("cpu"):
        x = x + one_of(shape, len(shape), generator).to(x)
    at = [int(i) for i in x.nonzero()[0]]
    sample, channel = (*at, 0)[:2]
    entry = at[2] if blocks.pieces > 1 else 0
    group = channel // blocks.group * blocks.pieces + entry // blocks.piece
    row = sample // blocks.samples * blocks.groups + group
    seen = mark((x,)).abs().sum(1).nonzero().flatten().tolist()
    assert seen == [row]
    named = blocks.name(row)
    for what, index, length in (
        ("sample", sample, shape[0]),
        ("channel", channel, (*shape, 1)[1]),
        ("entr", entry, blocks.length),
    ):
        part = next((p for p in named.split(", ") if p.startswith(what)), None)
        numbers = [int(w) for w in (part or f"x 0 {length - 1}").split() if w.isdigit()]
        assert numbers[0] <= index <= numbers[-1]


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-3, 1e18, 1e30])
def test_norms_neither_overflow_nor_underflow(scale) -> None:
    x = torch.randn(2, 3, 5, 7)
    scaled, norms = (mark((t,))[:, -1] for t in (x * scale, x))
    torch.testing.assert_close(scaled / scale, norms)


@given(shapes(), st.integers(1, 100))
def test_integers_have_no_size(shape, value) -> None:
    numbers = mark((torch.full(shape, value),))
    assert (numbers[:, -1] == 0).all()
    assert (numbers[:, :-1] != 0).any()


def test_a_fingerprint_sees_a_misplaced_pixel() -> None:
    x = torch.zeros(1, 3, 8, 8)
    x[0, 1, 2, 3] = 1
    for moved in (x.roll(1, 1), x.roll(2, 2), x.roll(3, 3), x.flip(3)):
        one, other = fingerprint((x,)), fingerprint((moved,))
        assert not torch.equal(one, other)


def test_the_generator_of_the_program_is_not_touched() -> None:
    before = torch.get_rng_state()
    mark((torch.ones(3, 5, 1237),))
    assert torch.equal(torch.get_rng_state(), before)


class TestTensorsThatStatesShare:
    """Tensors that states one after another share."""

    def numbers(self) -> tuple[Last, list[int]]:
        read: list[int] = []

        def function(state: tuple[torch.Tensor, ...]) -> torch.Tensor:
            read.append(len(state))
            return mark(state)

        return Last(function), read

    @given(st.data())
    def test_they_are_read_once(self, data: st.DataObject) -> None:
        last, read = self.numbers()
        state = tuple(torch.randn(2, 3, 5) for _ in range(data.draw(st.integers(2, 4))))
        for _ in range(3):
            new = data.draw(st.integers(0, len(state) - 1))
            read.clear()
            state = tuple(
                torch.randn(2, 3, 5) if i == new else t.detach()
                for i, t in enumerate(state)
            )
            first = not last.known
            assert torch.equal(last(state), mark(state))
            assert len(read) == (len(state) if first else 1)

    @pytest.mark.parametrize(
        "change",
        [
            lambda t: t.add_(1),
            lambda t: torch.add(t, 1),
            lambda t: t.view(3, 2, 5),
            lambda t: t.flip(0),
            lambda t: t.double(),
            lambda t: t.as_strided(t.shape, (15, 1, 3)),
        ],
    )
    def test_a_change_is_read(self, change) -> None:
        last, _ = self.numbers()
        a, b = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
        last((a, b))
        state = (change(a), b)
        assert torch.equal(last(state), mark(state))

    def test_another_tensor_in_the_same_memory_is_read(self) -> None:
        last, read = self.numbers()
        b = torch.randn(2, 3, 5)
        for _ in range(50):  # memory that was freed is used again
            state = torch.randn(2, 3, 5), b
            assert torch.equal(last(state), mark(state))
        assert len(read) == 51
