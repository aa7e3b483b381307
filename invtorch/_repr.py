"""The `repr` of invertible modules: short at any depth.

`InvertibleModule.__repr__` is `describe`. It differs from the `repr` of
`nn.Module`:

* Consecutive equal members are one entry with a count, and so is a repeated pattern:
  `(0-99): 100 x ...` or `(0-99): 25 x [...]`. Two members are equal if their `repr` is
  the same, so nothing that `extra_repr` shows is lost.
* A module is shown on one line if it fits.
* A parametrization is shown by its name (`weight_norm`) after the arguments of its
  module.
* Invertible modules show `_repr_facts`, which is more than `extra_repr`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from invtorch import _torch

WIDTH = 120  # a conditioner of two convolutions fits on one line
LONGEST_PATTERN = 64  # members: limits the time of the search if members differ
CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)

Lines = tuple[str, ...]


def describe(module: nn.Module) -> str:
    """Return the `repr` of a module."""
    return "\n".join(_lines(module, WIDTH, nested=False))


def parameter_count(module: nn.Module) -> str:
    """Return the number of parameters as text, empty if it is 0 or unknown."""
    parameters = list(module.parameters())
    if any(map(is_lazy, parameters)):
        return ""
    count = sum(p.numel() for p in parameters)
    return f"{count:,} parameter{'s' * (count > 1)}" if count else ""


def parametrizations(module: nn.Module) -> list[str]:
    """Return the names of parametrizations of a module, such as `weight_norm`."""
    if not is_parametrized(module):
        return []
    found = []
    for tensor, chain in module.parametrizations.items():  # type: ignore[operator, union-attr]
        words = " + ".join(map(_parametrization_name, chain))
        found.append(words if tensor == "weight" else f"{tensor}: {words}")
    return found


def _lines(module: nn.Module, width: int, *, nested: bool) -> Lines:
    """Return the lines that show a module: one line if it fits in `width`.

    Args:
        module: The module.
        width: Number of characters.
        nested: Whether the module is called by a container.
    """
    parametrized = is_parametrized(module)
    kind = type_before_parametrizations(module).__name__
    name = kind if parametrized else module._get_name()
    facts = _facts(module, nested)
    nested = _is_chain(module) and (nested or isinstance(module, nn.Sequential))
    members = [
        (key, _lines_of_child(child, width - 2, nested=nested))
        for key, child in _torch.submodules_of(module).items()
        if not (parametrized and key == "parametrizations")
    ]
    entries = list(_entries(members))
    one = _one_line(name, facts, entries)
    if one and (not entries or (len(one) <= width and not _is_chain_of_many(module))):
        return (one,)
    opening, more = _opening(name, facts)
    inner = [*more, *(line for entry in entries for line in _indented(*entry))]
    return (opening, *(f"  {line}" for line in inner), ")")


def _lines_of_child(child: nn.Module | None, width: int, *, nested: bool) -> Lines:
    """Return the lines of a child, which may be None or have its own `repr`."""
    printing = type(child).__repr__
    if child is None or printing not in (
        describe,
        nn.Module.__repr__,
        nn.ModuleList.__repr__,
    ):
        return tuple(repr(child).split("\n"))
    return _lines(child, width, nested=nested)


def _facts(module: nn.Module, nested: bool) -> list[str]:
    own = getattr(module, "_repr_facts", None)
    facts = own(nested) if own else [module.extra_repr()]
    if isinstance(module, CONVOLUTIONS):  # show (3, 3) as 3, and no stride of 1
        facts = [re.sub(r"\((\d+)(?:, \1)*,?\)", r"\1", fact) for fact in facts]
        facts = [re.sub(r", stride=1(?=,|$)", "", fact) for fact in facts]
    return [fact for fact in (*facts, *parametrizations(module)) if fact]


def _entries(members: Sequence[tuple[str, Lines]]) -> Iterator[tuple[str, Lines]]:
    """Join consecutive equal members, and repeated patterns, into one entry each."""
    keys = [key for key, _ in members]
    start = 0
    for size, times, lines in _runs([lines for _, lines in members], keys):
        last = start + size * times - 1
        key = keys[start] if times == 1 else f"{keys[start]}-{keys[last]}"
        yield key, lines
        start = last + 1


def _runs(
    members: Sequence[Lines], keys: Sequence[str]
) -> Iterator[tuple[int, int, Lines]]:
    """Return the size, the number of repetitions and the lines of each pattern.

    Of all patterns that start at a member, the one that covers the most members is
    used, and of those the shortest. Members whose keys are not numbers are not joined.
    """
    start = 0
    while start < len(members):
        size, times = 1, 1
        if keys[start].isdigit():
            size, times = _longest_run(members, keys, start)
        pattern = members[start : start + size]
        if times == 1:
            yield 1, 1, pattern[0]
        elif size == 1:
            yield 1, times, _times(times, pattern[0])
        else:
            inner = [
                f"  {line}"
                for _, _, lines in _runs(pattern, ["0"] * size)
                for line in lines
            ]
            yield size, times, (f"{times} x [", *inner, "]")
        start += size * times


def _longest_run(
    members: Sequence[Lines], keys: Sequence[str], start: int
) -> tuple[int, int]:
    """Return the size of the pattern at `start`, and the number of repetitions."""
    best = 1, 1
    end_of_numbers = next(
        (i for i in range(start, len(keys)) if not keys[i].isdigit()), len(keys)
    )
    for size in range(1, min(LONGEST_PATTERN, (end_of_numbers - start) // 2) + 1):
        end = start + size
        while end < end_of_numbers and members[end] == members[end - size]:
            end += 1
        times = (end - start) // size
        if times > 1 and size * times > best[0] * best[1]:
            best = size, times
    return best


def _times(times: int, lines: Lines) -> Lines:
    return (f"{times} x {lines[0]}", *lines[1:])


def _one_line(
    name: str, facts: Sequence[str], entries: Sequence[tuple[str, Lines]]
) -> str | None:
    if any(len(lines) > 1 for _, lines in entries) or any("\n" in f for f in facts):
        return None
    positional = [key == "module" or key[0].isdigit() for key, _ in entries]
    children = [
        lines[0] if unnamed else f"{key}={lines[0]}"
        for unnamed, (key, lines) in zip(positional, entries, strict=True)
    ]
    return f"{name}({', '.join([*facts, *children])})"


def _opening(name: str, facts: Sequence[str]) -> tuple[str, list[str]]:
    """Return the first line of a module, and the other lines of its facts."""
    text = ", ".join(facts)
    if "\n" in text:
        return f"{name}(", text.split("\n")
    return f"{name}({text}", []


def _indented(key: str, lines: Lines) -> Lines:
    return (f"({key}): {lines[0]}", *lines[1:])


def _is_chain(module: nn.Module) -> bool:
    """Return whether a module is an `invtorch.Composite`, which imports this file."""
    return hasattr(module, "_repr_facts") and hasattr(module, "chain")


def _is_chain_of_many(module: nn.Module) -> bool:
    """Return whether a module is a chain that is shown with one line per member."""
    return _is_chain(module) and (
        isinstance(module, nn.Sequential) or len(_torch.submodules_of(module)) > 1
    )


def _parametrization_name(parametrization: nn.Module) -> str:
    """Return the name of a parametrization. PyTorch's are private classes."""
    name = type(parametrization).__name__
    if name.startswith("_"):
        word = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name[1:]).lower()
        dim = getattr(parametrization, "dim", 0)
        return f"{word}(dim={dim})" if dim else word
    lines = _lines_of_child(parametrization, WIDTH, nested=False)
    return " ".join(line.strip() for line in lines).removesuffix("()")
