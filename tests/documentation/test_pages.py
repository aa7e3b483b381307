"""What the pages show runs: every Python block, and the options of every command."""

import re
import shlex
import socket
import subprocess
import sys
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


def started(line: str, folder: Path) -> subprocess.Popen:
    """Start a command of a page with `torchrun`, of one process for four."""
    line = line.replace("\\\n", " ").replace("--nproc-per-node 4", "--nproc-per-node 1")
    program, *options = shlex.split(line)
    assert program == "torchrun"
    run = [sys.executable, "-m", "torch.distributed.run", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(run, cwd=folder, **pipes)


def test_the_script_for_many_processes_runs_with_the_commands_beside_it(
    tmp_path, monkeypatch
) -> None:
    """On one machine, and as two nodes, which here are one machine too."""
    page = ROOT / "docs/howto/cluster.md"
    (script,) = blocks(page, "python")
    (tmp_path / "train.py").write_text(script)
    one, two, *_ = blocks(page, "bash")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    two = two.replace("FIRST_NODE:29500", address)
    for lines in ([one], [two, two]):
        agents = [started(line, tmp_path) for line in lines]
        try:
            said = [agent.communicate(timeout=300)[0] for agent in agents]
        finally:
            for agent in agents:
                agent.kill()
        assert [agent.returncode for agent in agents] == [0] * len(lines), said
        for rank in range(len(lines)):
            assert f"process {rank} of {len(lines)}: " in "".join(said)


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
