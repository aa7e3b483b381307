"""What docstrings show runs, and public things have one."""

import doctest
import importlib
import inspect
import pkgutil

import numpy as np
import pytest
import torch
from torch import nn

import invtorch
import invtorch.compat.freia
import invtorch.flows
import invtorch.nets
import invtorch.testing
import mri_example

MODULES = [
    module.name
    for package in (invtorch, mri_example)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name) -> None:
    names = {"torch": torch, "nn": nn, "np": np} | vars(invtorch)
    module = importlib.import_module(name)
    results = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


PACKAGES = (
    invtorch,
    invtorch.compat.freia,
    invtorch.nets,
    invtorch.flows,
    invtorch.testing,
)
PUBLIC = [(package, name) for package in PACKAGES for name in package.__all__]


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_public_names_show_an_example(package, name) -> None:
    assert ">>>" in (inspect.getdoc(getattr(package, name)) or "")
