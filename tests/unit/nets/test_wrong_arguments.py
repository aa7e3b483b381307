"""A wrong argument of a network is refused when it is built, by its name."""

import pytest
import torch
from torch import nn

from invtorch import OrthogonalCoupling
from invtorch.nets import IRIM, Glow, InvertibleUNet


def residual(estimate, measured):
    return estimate - measured


def step_networks(count: int = 2):
    conditioner = nn.Conv2d(2, 2, 1)
    return [OrthogonalCoupling(conditioner, channels=4) for _ in range(count)]


NETS = {
    "Glow": lambda **options: Glow(
        **{"channels": 2, "levels": 2, "steps": 1} | options
    ),
    "InvertibleUNet": lambda **options: InvertibleUNet(
        **{"channels": [4, 8], "blocks": 1} | options
    ),
    "IRIM": lambda **options: IRIM(
        **{"step_networks": step_networks(), "gradient": residual} | options
    ),
}
COUNTS = [0, -1, 1.5, "2", None, [2]]
WRONG = {
    ("Glow", "channels"): COUNTS,
    ("Glow", "levels"): COUNTS,
    ("Glow", "steps"): COUNTS,
    ("Glow", "hidden"): COUNTS,
    ("Glow", "dims"): [*COUNTS, 4],
    ("Glow", "context_channels"): COUNTS[1:],
    ("Glow", "conditioner"): [3, "conv", lambda *_: 3],
    ("Glow", "bound"): [1.0, 0.5, -2.0, float("nan"), "2", [2.0]],
    ("InvertibleUNet", "channels"): [0, 4, [], [4, 0], [4, 7], [1], ["a"], None],
    ("InvertibleUNet", "blocks"): [0, -1, 1.5, "2", None, [1], [1, 0]],
    ("InvertibleUNet", "block"): [3, lambda _: nn.Identity(), lambda _: None],
    ("InvertibleUNet", "hidden"): [0, -1, 1.5, "2", [2]],
    ("InvertibleUNet", "stride"): [0, -1, 1.5, "2", None, [2], [2, 2, 2]],
    ("InvertibleUNet", "dims"): [*COUNTS, 4],
    ("InvertibleUNet", "resampling"): ["learned", None, 2],
    ("IRIM", "step_networks"): [[], None, 3, [nn.Identity()], [None]],
    ("IRIM", "gradient"): [3, None, "residual"],
    ("IRIM", "estimate_channels"): COUNTS,
}
for one in NETS:
    WRONG[one, "memory"] = ["inverse", 3, ["store"]]
    WRONG[one, "anchors"] = [-1, 1.5, "many", None]
    WRONG[one, "guard"] = ["stop", 3]


@pytest.mark.parametrize("key", sorted(WRONG), ids="-".join)
def test_wrong_arguments_are_named(key) -> None:
    net, name = key
    NETS[net]()
    for value in WRONG[key]:
        with pytest.raises((TypeError, ValueError)) as caught:
            NETS[net](**{name: value})
        said = str(caught.value)
        assert name in said or "is not an InvertibleModule" in said, (value, said)


@pytest.mark.parametrize("returned", [None, 3, (torch.ones(1, 1, 2, 2),)])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_a_gradient_that_is_no_tensor_is_named(returned, direction) -> None:
    net = IRIM(step_networks(), lambda *_: returned, estimate_channels=1)
    with pytest.raises(TypeError, match=r"the gradient is a \w+, but must be a tensor"):
        getattr(net, direction)(torch.randn(1, 4, 2, 2), torch.randn(1, 1, 2, 2))
