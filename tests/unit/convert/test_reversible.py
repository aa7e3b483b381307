"""Converted models keep parameters and keys, and train in constant memory."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invtorch.convert import ReversibleBlocks, reversible
from invtorch.planning import measure_memory
from tests.devices import ON_THE_CPU
from tests.tolerances import assert_equal

KINDS = ["momentum", "two_stream", "checkpoint"]


class Block(nn.Module):
    """A pre-activation residual block."""

    def __init__(self, channels: int = 4, inner: bool = False):
        super().__init__()
        self.first = nn.Conv1d(channels, channels, 3, padding=1)
        self.second = nn.Conv1d(channels, channels, 3, padding=1)
        self.inner = inner

    def forward(self, x):
        f = self.second(torch.tanh(self.first(torch.tanh(x))))
        return f if self.inner else x + f


class Tuples(nn.Module):
    """Returns a tuple and takes a mask by keyword, as blocks of transformers do."""

    def __init__(self, channels: int = 4):
        super().__init__()
        self.mix = nn.Conv1d(channels, channels, 1)

    def forward(self, x, mask=None, *, scale=1.0):
        weights = torch.sigmoid(self.mix(x)) * scale
        if mask is not None:
            weights = weights * mask
        return x + weights * x, weights


class BasicBlock(nn.Module):
    """The structure of a ResNet's block: activation behind the sum, a downsampling."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x):
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        skip = x if self.downsample is None else self.downsample(x)
        return torch.relu(out + skip)


class ResNet(nn.Module):
    """A small copy of the structure of a ResNet."""

    def __init__(self, depth: int = 3):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layer1 = nn.Sequential(*[BasicBlock(8, 8) for _ in range(depth)])
        more = [BasicBlock(16, 16) for _ in range(depth - 1)]
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2), *more)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.layer2(self.layer1(self.stem(x)))
        return self.head(x.mean((2, 3)))


def sequence(depth: int = 5, inner: bool = False):
    return nn.Sequential(*[Block(inner=inner) for _ in range(depth)]).double()


def batch():
    return torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)


def momentum(blocks, x, gamma):
    v = torch.zeros_like(x)
    for block in blocks:
        v = gamma * v + (1 - gamma) * (block(x) - x)
        x = x + v
    return x


def two_stream(blocks, x):
    a = b = x
    for i, block in enumerate(blocks):
        if i % 2 == 0:
            a = a + block(b) - b
        else:
            b = b + block(a) - a
    return (a + b) / 2


@given(st.integers(0, 2**31), st.integers(1, 7), st.floats(0.3, 0.95))
def test_momentum_is_its_formula(seed, depth, gamma) -> None:
    torch.manual_seed(seed)
    blocks, x = sequence(depth), batch()
    net = reversible(blocks, kind="momentum", gamma=gamma)
    assert_equal(net(x), momentum(blocks, x, gamma))


@given(st.integers(0, 2**31), st.integers(1, 7))
def test_two_streams_are_their_formula(seed, depth) -> None:
    torch.manual_seed(seed)
    blocks, x = sequence(depth), batch()
    assert_equal(reversible(blocks, kind="two_stream")(x), two_stream(blocks, x))


@given(st.integers(0, 2**31), st.integers(1, 7), st.booleans())
def test_checkpointing_does_not_change_the_function(seed, depth, inner) -> None:
    torch.manual_seed(seed)
    blocks, x = sequence(depth, inner), batch()
    y = x
    for block in blocks:
        y = y + block(y) if inner else block(y)
    net = reversible(blocks, kind="checkpoint", residual=not inner)
    assert_equal(net(x), y)


@given(st.integers(0, 2**31), st.sampled_from(KINDS), st.booleans())
def test_gradients_equal_plain_autograd(seed, kind, inner) -> None:
    torch.manual_seed(seed)
    blocks, x = sequence(12, inner), batch()

    def gradients(memory):
        options = {"memory": memory, "anchors": 0, "residual": not inner}
        net = reversible(copy.copy(blocks), kind=kind, **options)
        return torch.autograd.grad(net(x).square().sum(), [x, *blocks.parameters()])

    for a, b in zip(gradients("invert"), gradients("store"), strict=True):
        assert_equal(a, b)


@given(st.integers(0, 2**31), st.sampled_from(KINDS), st.booleans())
def test_tuples_and_keywords(seed, kind, masked) -> None:
    torch.manual_seed(seed)
    blocks = nn.ModuleList([Tuples() for _ in range(4)]).double()
    x, mask = batch(), torch.rand(2, 1, 6, dtype=torch.float64, requires_grad=True)
    named = {"mask": mask, "scale": 0.5} if masked else {}

    def results(memory):
        net = reversible(blocks, kind=kind, memory=memory, anchors=0)
        y, weights = net(x, **named)
        assert not weights.requires_grad
        leaves = [x, *blocks.parameters(), *([mask] if masked else [])]
        return y, weights, *torch.autograd.grad(y.square().sum(), leaves)

    for a, b in zip(results("invert"), results("store"), strict=True):
        assert_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_keyword_that_a_block_does_not_take(kind) -> None:
    net = reversible(nn.ModuleList([Tuples(), Tuples()]).double(), kind=kind)
    with pytest.raises(TypeError, match="attention"):
        net(batch(), attention=None)


# --- state dicts ----------------------------------------------------------------------


@given(st.sampled_from(KINDS), st.booleans())
def test_keys_and_parameters_are_those_of_the_original(kind, before) -> None:
    model = ResNet()
    keys, parameters = [*model.state_dict()], [*model.parameters()]
    x = torch.randn(2, 3, 8, 8)
    blocks = [reversible(model, name, kind=kind) for name in ("layer1", "layer2")]
    if not before:
        model(x)
    assert [*model.state_dict()] == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    other = ResNet()
    other.load_state_dict(model.state_dict())
    model.load_state_dict(other.state_dict())
    for one in blocks:
        one.restore()
    assert_equal(model.eval()(x), other.eval()(x))


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_independent(kind) -> None:
    net = reversible(sequence(), kind=kind)
    x = batch()
    y = net(x)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert_equal(net(x), y)
    assert_equal(other(x), x)


class Noisy(nn.Module):
    """A residual block with statistics, a buffer that it exchanges, and dropout."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv1d(4, 4, 1)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return x + self.dropout(self.norm(self.mix(x)))


@given(st.sampled_from(KINDS), st.lists(st.booleans(), min_size=4, max_size=4))
def test_a_report_changes_nothing(kind, training) -> None:
    blocks = nn.Sequential(*[Noisy() for _ in range(4)]).double()
    net = reversible(blocks, kind=kind)
    for block, mode in zip(blocks, training, strict=True):
        block.train(mode)
    modes = [module.training for module in net.modules()]
    before = copy.deepcopy(net.state_dict())
    x = batch()
    random = torch.get_rng_state()
    net.report(x)
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


@given(st.integers(0, 2**31))
def test_the_first_call_is_as_the_others(seed) -> None:
    blocks = nn.Sequential(*[Noisy() for _ in range(4)]).double()
    original, x = copy.deepcopy(blocks), batch()
    net = reversible(blocks, kind="checkpoint")
    torch.manual_seed(seed)
    expected = original(x)
    torch.manual_seed(seed)
    assert_equal(net(x), expected)
    for name, value in original.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


@given(
    st.sampled_from(KINDS),
    st.sampled_from([nn.ModuleList, list, lambda blocks: nn.Sequential(*blocks)]),
    st.lists(st.integers(0, 2), min_size=1, max_size=12),
)
def test_blocks_with_shared_weights_run_each_time(kind, container, order) -> None:
    different, x = sequence(3), batch()
    blocks = [different[i] for i in order]
    given = container(blocks)
    keys = [*given.state_dict()] if isinstance(given, nn.Module) else None
    net = reversible(given, kind=kind, gamma=0.7)
    expected = {
        "momentum": lambda: momentum(blocks, x, 0.7),
        "two_stream": lambda: two_stream(blocks, x),
        "checkpoint": lambda: nn.Sequential(*blocks)(x),
    }[kind]()
    found = net(x)
    assert_equal(found, expected)
    assert keys is None or [*net.state_dict()] == keys
    wanted = [x, *net.parameters()]
    pairs = zip(
        torch.autograd.grad(found.square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
        strict=True,
    )
    for one, other in pairs:
        assert_equal(one, other)


@given(st.integers(0, 2**31), st.integers(1, 12), st.sampled_from([0.3, 0.9]))
def test_a_velocity_with_parameters_is_no_block(seed, depth, gamma) -> None:
    torch.manual_seed(seed)
    blocks, x = sequence(depth), batch()
    first = nn.Conv1d(4, 4, 1).double()
    keys = [*blocks.state_dict(), "velocity.weight", "velocity.bias"]
    net = reversible(blocks, velocity=first, gamma=gamma)
    assert [*net.state_dict()] == keys
    state, v = x, first(x)
    for block in blocks:
        v = gamma * v + (1 - gamma) * (block(state) - state)
        state = state + v
    wanted = [x, *blocks.parameters(), *first.parameters()]
    found = torch.autograd.grad(net(x).square().sum(), wanted)
    expected = torch.autograd.grad(state.square().sum(), wanted)
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)
    assert net.restore() is blocks
    assert [*blocks.state_dict()] == keys[:-2]


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(KINDS),
        "gamma": st.sampled_from([0.3, 0.7]),
        "residual": st.just(False),
        "velocity": st.just(torch.ones_like),
    },
)


@given(st.sampled_from(KINDS), CHANGES, st.sets(st.integers(0, 4)))
def test_what_is_changed_after_a_call_has_an_effect(kind, changes, places) -> None:
    net, x = reversible(sequence(), kind=kind), batch()
    net(x)
    if changes.get("kind", kind) != "momentum":
        changes.pop("velocity", None)  # it has no effect, and is refused
    for name, value in changes.items():
        setattr(net, name, value)
    for place in places:
        net.add_module(str(place), Block().double())
    blocks = nn.Sequential(*net.children())
    fresh = reversible(blocks, **{"kind": kind, **changes})
    assert_equal(net(x), fresh(x))
    assert [*net.restore()] == [*blocks]


@pytest.mark.parametrize(("name", "value"), [("kind", "none"), ("gamma", 2.0)])
def test_a_wrong_option_after_a_call_is_refused(name, value) -> None:
    net = reversible(sequence())
    net(batch())
    setattr(net, name, value)
    with pytest.raises(ValueError, match=f"{name} is .*, but must be"):
        net(batch())


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_that_fails_leaves_the_modes(kind) -> None:
    net = reversible(sequence(), kind=kind).train()
    with pytest.raises(RuntimeError):
        net.report(torch.randn(2, 3, 5))
    assert all(module.training for module in net.modules())


# --- models ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_stages_of_a_resnet(kind) -> None:
    torch.manual_seed(0)
    model = ResNet(4)
    stages = [reversible(model, n, kind=kind, gamma=0.9) for n in ("layer1", "layer2")]
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    expected = {} if kind == "checkpoint" else {"0": "changes the shape"}
    assert stages[0].left == {}
    assert stages[1].left.keys() == expected.keys()
    assert model.layer1[0].bn1.num_batches_tracked == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_first", [True, False])
def test_transformer_encoder_of_torch(kind, batch_first) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, batch_first=batch_first, norm_first=True
    )
    model = nn.TransformerEncoder(layer, 4, nn.LayerNorm(8), enable_nested_tensor=False)
    x = torch.randn(3, 5, 8) if batch_first else torch.randn(5, 3, 8)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 5])
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    plain = model(x, causal, padding)
    blocks = reversible(model, "layers", kind=kind, gamma=1e-3, anchors=8)

    def gradients():
        model.zero_grad()
        y = model(x, causal, padding)
        y.square().mean().backward()
        return y.detach(), [p.grad.clone() for p in model.parameters()]

    y, found = gradients()
    if kind != "two_stream":
        assert (y - plain).norm() < 0.02 * plain.norm()
    for _, run in blocks._segments:
        if hasattr(run, "net"):
            run.net.memory = "store"
    _, expected = gradients()
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-7
    assert blocks.self_attn is blocks.get_submodule("0").self_attn


def test_masked_positions_have_no_influence() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    reversible(model, "layers")
    x = torch.randn(1, 5, 8)
    padding = torch.tensor([[False, False, False, True, True]])
    other = x.clone()
    other[:, 3:] += 10
    one, two = (model(t, src_key_padding_mask=padding) for t in (x, other))
    assert_equal(one[:, :3], two[:, :3])
    assert not torch.allclose(model(x)[:, :3], model(other)[:, :3])


@given(st.integers(0, 2**31))
def test_report(seed) -> None:
    torch.manual_seed(seed)
    blocks, x = sequence(8), batch()
    reports = {g: reversible(blocks, gamma=g).report(x) for g in (0.01, 0.9)}
    plain = blocks(x)
    moved = (momentum(blocks, x, 0.9) - plain).norm() / plain.norm()
    assert reports[0.9].moved == pytest.approx(moved.item())
    assert reports[0.01].moved < reports[0.9].moved
    assert reversible(blocks, kind="checkpoint").report(x).moved == 0
    assert "MiB" in str(reports[0.9])


@ON_THE_CPU
@pytest.mark.parametrize("kind", ["momentum", "two_stream"])
def test_kept_bytes_do_not_depend_on_depth(kind) -> None:
    def live(depth: int) -> int:
        blocks = nn.Sequential(*[Block() for _ in range(depth)])
        net = reversible(blocks, kind=kind, anchors=0)
        x = torch.randn(2, 4, 64, requires_grad=True)
        net(x)
        return measure_memory(lambda: net(x)).live

    assert live(4) == live(16) == live(64)


# --- sequences and bad input ----------------------------------------------------------


def test_stands_for_all_blocks() -> None:
    net = reversible(sequence(3))
    assert [*net] == [net]
    assert len(net) == 1
    assert net[0] is net[-1] is net[:] is net[:3] is net
    for index in (1, slice(1, None)):
        with pytest.raises(IndexError, match="restore"):
            net[index]


def test_repr_shows_blocks_and_what_was_left() -> None:
    stage = reversible(ResNet(), "layer2")
    stage(torch.randn(1, 8, 4, 4))
    assert "kind='momentum', gamma=0.9, left=['0']" in repr(stage)


class Growing(nn.Module):
    """Doubles the channels."""

    def forward(self, x):
        return torch.cat([x, x], 1)


class NoTensor(nn.Module):
    """Returns a dictionary."""

    def forward(self, x):
        return {"x": x}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: reversible(sequence(), kind="revnet"), ValueError, "kind is 'revnet'"),
        (lambda: reversible(sequence(), gamma=1.0), ValueError, "gamma is 1.0"),
        (lambda: reversible(sequence(), memory="no"), ValueError, "memory is 'no'"),
        (lambda: reversible(nn.Sequential()), ValueError, "no blocks in the model"),
        (lambda: reversible([1, 2]), TypeError, "a block in the model is a int"),
        (lambda: reversible(ResNet()), TypeError, "must be a ModuleList or"),
        (lambda: reversible(ResNet(), "layer9"), AttributeError, "layer9"),
        (
            lambda: reversible(sequence(), split=lambda block: (block, block)),
            ValueError,
            "split is given",
        ),
        (
            lambda: reversible([Growing(), Growing()])(batch()),
            ValueError,
            "block 0 changes the shape",
        ),
        (lambda: reversible([NoTensor()])(batch()), TypeError, "0 returned a dict"),
        (
            lambda: reversible([Tuples().double()], output=2)(batch()),
            TypeError,
            "output is 2",
        ),
    ],
)
def test_errors(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_blocks_are_found_by_type() -> None:
    assert isinstance(reversible([Block(), Block()]), ReversibleBlocks)
