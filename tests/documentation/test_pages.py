"""What the pages show runs: every Python block, and the options of every command."""

import re
import shlex
from pathlib import Path

import pytest

import invtorch
import invtorch.convert
import invtorch.flows
import invtorch.nets
import invtorch.testing
from mri_example.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = "python -m mri_example "


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def commands() -> list[str]:
    text = "".join(block for page in PAGES for block in blocks(page, "bash"))
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(COMMAND)]


# of PyTorch and Lightning themselves
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated")
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=str)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)  # what a page writes stays out of the checkout
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_the_options_of_a_command_exist(command, capsys) -> None:
    arguments = shlex.split(command.removeprefix(COMMAND), comments=True)
    with pytest.raises(SystemExit) as end:
        main([arguments[0], "--print_config", *arguments[1:]])
    assert end.value.code == 0, capsys.readouterr().err


def test_there_are_commands_and_links_lead_somewhere() -> None:
    assert len(commands()) >= 4
    for page in PAGES:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_reference_lists_its_entries() -> None:
    pages = (ROOT / "docs/reference").glob("*.md")
    entries = {
        (page.name, name)
        for page in pages
        for name in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)
    }
    listed = (ROOT / "docs/reference.md").read_text()
    assert entries == {*re.findall(r"\(reference/(\w+\.md)#([\w.]+)\)", listed)}


@pytest.mark.parametrize(
    "package",
    [invtorch, invtorch.convert, invtorch.flows, invtorch.nets, invtorch.testing],
    ids=lambda p: p.__name__,
)
def test_the_reference_has_every_public_name(package) -> None:
    pages = [*(ROOT / "docs/reference").glob("*.md")]
    entries = " ".join(page.read_text() for page in pages).split()
    assert {f"{package.__name__}.{name}" for name in package.__all__} <= {*entries}
