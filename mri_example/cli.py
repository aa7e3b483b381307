"""The command line: `python -m mri_example demo | simulate | fit | ...`."""

import contextlib
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    Namespace,
    lazy_instance,
    set_parsing_settings,
)

from mri_example.data.anatomy import nifti_volumes
from mri_example.data.simulate import Simulation, simulate_demo, simulate_volumes
from mri_example.errors import InputError, require, reworded
from mri_example.masks import Masks
from mri_example.models import ChallengeIRIM, Reconstructor
from mri_example.parser import Parser
from mri_example.progress import LINES, complain, say
from mri_example.summary import SUMMARIES

CHALLENGE: Any = lazy_instance(ChallengeIRIM)


def simulate(
    output: Path,
    source: Path | None = None,
    simulation: Simulation = Simulation(),
    volume: int | None = None,
) -> None:
    """Simulate k-space in the fastMRI layout.

    Without a source, the embedded heads are written as a data root, split by subject.
    Simulated k-space is not raw data: scores on it do not compare with the leaderboard.

    Args:
        output: A data root; with a source, the folder for its files.
        source: Magnitude images: a NIfTI file or a folder of them.
        simulation: Size, noise, phase, coils and seed.
        volume: Which volume of a series (4-D) is taken, counted from 0.
    """
    if source is None:
        written = simulate_demo(output, simulation)
    else:
        written = simulate_volumes(nifti_volumes(source, volume), output, simulation)
    say(
        f"{len(written)} files written to {output}; those already there were kept\n"
        f"k-space is simulated from magnitude images and is not raw data: scores on "
        f"it do not compare with the leaderboard"
    )


def convert(source: Path, output: Path) -> None:
    """Convert Cartesian ISMRMRD raw files to the fastMRI layout.

    Files that are fully sampled get a target, others keep their mask. The header is
    copied whole, with all that it says of the patient.

    Args:
        source: A raw file or a folder of them (.h5, .hdf5, .mrd, .ismrmrd).
        output: Folder for the files, for example multicoil_test of a data root.
    """
    from mri_example.data.convert import convert_raw

    written = convert_raw(source, output)
    say(f"{len(written)} files written to {output}; those already there were kept")


def check(data: Path, quick: bool = False) -> None:
    """Look through a data root: counts, shapes, defects of each folder.

    Exits with 2 if anything is defective.

    Args:
        data: Folder with singlecoil_train, multicoil_val and the like.
        quick: Read one slice of each file instead of all.
    """
    from mri_example.inspection import inspect_root

    reports = inspect_root(data, quick=quick)
    say("\n".join(map(str, reports)))
    defects = sum(len(report.defects) for report in reports)
    text = f"{data} has {defects} defects: repair or remove what is named above"
    require(not defects, text)


def reconstruct(
    data: Path,
    output: Path,
    checkpoint: Path | None = None,
    masks: Masks = Masks(),
    device: str = "",
    batch_size: int = 8,
    slab: int | None = None,
    skip_failures: bool = False,
    model_class: type[Reconstructor] | None = None,
) -> None:
    """Reconstruct every file of a folder, as the leaderboard takes it.

    Args:
        data: Folder of files in the fastMRI layout; those that bring a mask keep it.
        output: Folder for files of the same names, data set reconstruction.
        checkpoint: A trained model, .ckpt or .safetensors, or the name of one in
            mri_example/trained, such as heads; without one the zero-filled images are
            written.
        masks: How files without a mask are undersampled.
        device: For example cpu or cuda; a GPU is used if there is one.
        batch_size: Slices that are reconstructed at once.
        slab: Slices of a slab, for a model of slabs that does not fit.
        skip_failures: Go on without the volumes that fail, and list them at the end.
        model_class: Class of the checkpoint's model, if it is not of this package, by
            its path, such as package.module.Model.
    """
    from mri_example.reconstruct import reconstruct, zero_filled
    from mri_example.training.checkpoints import load

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    method: Any = zero_filled if checkpoint is None else load(checkpoint, model_class)
    failures: dict[Path, str] | None = {} if skip_failures else None
    options: dict[str, Any] = {"device": device, "batch_size": batch_size, "slab": slab}
    written = reconstruct(method, data, output, masks, failures=failures, **options)
    say(f"{len(written)} reconstructions in {output}; those already there were kept")
    if failures:
        count = f"failed and not written: {len(failures)}"
        say("\n  ".join([count, *failures.values()]))
    require(written, f"no volume of {data} could be reconstructed: see above")


def evaluate(
    targets: Path,
    reconstructions: Path,
    output: Path | None = None,
    report: Path | None = None,
    skip_failures: bool = False,
) -> None:
    """Compare reconstructions with targets: NMSE, PSNR and SSIM per volume.

    Args:
        targets: Folder of files with targets.
        reconstructions: Folder of reconstructions with the same names.
        output: A .json file for the numbers.
        report: Where to write a page with scores, slices and errors; without it, beside
            the folder of reconstructions.
        skip_failures: Go on without the volumes that cannot be compared, and list them
            at the end and in the output.
    """
    from mri_example import evaluate as module

    named = output is None or output.suffix == ".json"
    require(named, f"output is {output}, but must end in .json: rename it")
    evaluation = module.evaluate(targets, reconstructions, skip_failures=skip_failures)
    say(str(evaluation))
    if output is not None:
        evaluation.write(output)
    folder = reconstructions.resolve()
    page = report or folder.with_name(f"{folder.name}.html")
    module.evaluation_page(evaluation, targets, reconstructions, page)
    say(f"report: {page}")


def export(
    output: Path,
    checkpoint: Path | None = None,
    authors: Path | None = None,
    model: Reconstructor = CHALLENGE,
    model_class: type[Reconstructor] | None = None,
) -> None:
    """Write a trained model as one safetensors file with its configuration.

    Args:
        output: The file, ending in .safetensors.
        checkpoint: A checkpoint such as best.ckpt.
        authors: Instead of it, a state dict of the authors' implementation of the
            i-RIM, as torch.save wrote it.
        model: The model that the authors' weights are for, with its options.
        model_class: Class of the checkpoint's model, if it is not of this package.
    """
    from mri_example.training import checkpoints

    one = (checkpoint is None) != (authors is None)
    require(one, "export takes one of checkpoint and authors: give one of them")
    if authors is not None:
        checkpoints.export_authors(authors, model, output)
    elif checkpoint is not None:
        checkpoints.export(checkpoint, output, model_class)
    say(f"model written to {output}")


COMMANDS: dict[str, Callable[..., Any]] = {
    command.__name__: command
    for command in (simulate, convert, check, reconstruct, evaluate, export)
}


class _Terminated(KeyboardInterrupt):
    """Raised where SIGTERM arrives, so that nothing half-written is left behind."""


def _terminate(*_: Any) -> NoReturn:
    raise _Terminated


class ConfigFile(ActionConfigFile):
    """A file of options; `mri_example/configs/` is found from any folder."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: Any) -> None:
        """Add the options of a file to those that are known."""
        folder, _, name = str(value).rpartition("/")
        if folder == "mri_example/configs" and not Path(value).exists():
            value = str(Path(__file__).parent / "configs" / name)
        text = f"{value} refers to itself, or is nested too deeply: write it out"
        with reworded(text, RecursionError):
            with contextlib.suppress(OSError, yaml.YAMLError, UnicodeDecodeError):
                _check_names(yaml.compose(Path(value).read_text()), value)
            ActionConfigFile.apply_config(parser, cfg, dest, value)


def _check_names(node: Any, path: str) -> None:
    """Refuse options that a file gives twice, of which YAML takes the last."""
    if not isinstance(node, yaml.MappingNode):
        return
    count = Counter(key.value for key, _ in node.value)
    for key, value in node.value:
        text = f"{path} gives {key.value} {count[key.value]} times: keep one of them"
        require(count[key.value] == 1, text)
        _check_names(value, path)


def main(arguments: list[str]) -> int:
    """Run one command.

    Returns:
        0, or 2 if the input was at fault, 130 after Ctrl-C and 143 after SIGTERM.
    """
    LINES.restart()
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        _run(*arguments)
    except InputError as error:
        # without the traceback of a worker that loads data
        said = str(error).rsplit(f"{InputError.__name__}: ", 1)[-1].strip()
        complain(f"error: {said}")
        return 2
    except (PermissionError, MemoryError) as error:
        denied = isinstance(error, PermissionError)
        cure = "change its permissions" if denied else "choose smaller sizes"
        complain(f"error: {error or 'out of memory'}: {cure}")
        return 2
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, _Terminated)
        said = "terminated" if terminated else "interrupted"
        complain(f"{said}: run the same command again to go on")
        return 128 + (signal.SIGTERM if terminated else signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _run(name: str = "", *options: str) -> None:
    text = f"invalid choice: {name!r} is no subcommand: `python -m mri_example --help` "
    require(name in SUMMARIES, f"{text}lists what there is")
    for option, value in pairwise((*options, "-")):
        empty = option.startswith("--") and (not value or option.endswith("="))
        require(not empty, f"{option} is empty: give a value, or leave it out")
    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    program = f"python -m mri_example {name}"
    about: dict[str, Any] = {"prog": program, "description": SUMMARIES[name]}
    if name == "fit":
        from mri_example import fit_cli

        fit = fit_cli.parser_of(**about)
        fit_cli.run(fit, _parsed(fit, options))
        return
    command = COMMANDS.get(name) or getattr(import_module("mri_example.demo"), name)
    parser = Parser(**about)
    parser.add_function_arguments(command)
    command(**vars(parser.instantiate(_parsed(parser, options))))


def _parsed(parser: Parser, options: Sequence[str]) -> Namespace:
    parser.add_argument("--config", action=ConfigFile, help="Options as YAML.")
    parsed: Namespace = parser.parse_args([*options])
    del parsed["config"]
    return parsed
