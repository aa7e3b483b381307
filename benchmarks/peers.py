"""The libraries that are measured beside this one, where they are installed.

MemCNN inverts modules that have `forward` and `inverse`, so it is given the very layers
of the network; those that return views it refuses (`Conjugation`). Additive couplings
it is given in its own form, as is revlib, which knows no other layer: with the same
conditioners in the same order, but halves that take turns, $x_1$ shifted by a function
of $x_2$, then $x_2$ by one of $x_1$.
"""

import importlib
import importlib.metadata
import warnings
from collections.abc import Callable
from types import ModuleType

from torch import Tensor, nn

from invtorch import AdditiveCoupling, InvertibleSequential, OrthogonalCoupling

PACKAGES = {"MemCNN": "memcnn", "revlib": "revlib"}


def library(name: str) -> ModuleType | None:
    """Import a peer, or return `None` if it can't be imported."""
    warnings.filterwarnings("ignore", module=PACKAGES[name])  # of its older torch
    try:
        return importlib.import_module(PACKAGES[name])
    except ImportError:
        return None


def versions() -> dict[str, str | None]:
    """Return the version of every peer; `None` says that it is left out."""
    return {
        name: importlib.metadata.version(package) if library(name) else None
        for name, package in PACKAGES.items()
    }


def announce() -> None:
    """Say which peers take part, and which are left out."""
    for name, version in versions().items():
        if version is None:
            print(f"{name} is left out: it can't be imported (`make bench` gets it)")
        else:
            print(f"{name} {version} takes part where it can run the network")


def peers(net: InvertibleSequential) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the installed peers that can run the network, each ready to run it."""
    found = {}
    memcnn, revlib = library("MemCNN"), library("revlib")
    if memcnn is not None and chained(net, AdditiveCoupling, OrthogonalCoupling):
        found["MemCNN"] = by_memcnn(memcnn, net)
    if revlib is not None and chained(net, AdditiveCoupling):
        found["revlib"] = by_revlib(revlib, net)
    return found


def by_memcnn(memcnn: ModuleType, net: InvertibleSequential) -> Callable[..., Tensor]:
    """Wrap each layer of the network, or its conditioners two by two.

    MemCNN frees the storage of its input, and is given a copy.
    """
    layers = list(net)
    if chained(net, AdditiveCoupling):
        conditioners = [layer.conditioner for layer in net]
        pairs = zip(conditioners[::2], conditioners[1::2], strict=True)
        layers = [memcnn.AdditiveCoupling(Fm=f, Gm=g) for f, g in pairs]
    chain = nn.Sequential(*[memcnn.InvertibleModuleWrapper(layer) for layer in layers])
    return lambda x: chain(x.clone())


def by_revlib(revlib: ModuleType, net: InvertibleSequential) -> Callable[..., Tensor]:
    """Chain the conditioners of the network.

    revlib makes a graph only for an input that requires a gradient.
    """
    chain = revlib.ReversibleSequential(*[layer.conditioner for layer in net])
    return lambda x: chain(x.detach().requires_grad_())


def chained(net: InvertibleSequential, *kinds: type) -> bool:
    """Say whether all layers of the network are of these kinds."""
    return all(isinstance(layer, kinds) for layer in net)
