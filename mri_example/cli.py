"""The command line: `python -m mri_example demo | simulate | fit | ...`."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning
import torch
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    Namespace,
    lazy_instance,
    set_parsing_settings,
)
from lightning.pytorch.cli import LightningArgumentParser

from mri_example.data.anatomy import nifti_volumes
from mri_example.data.convert import convert_raw
from mri_example.data.simulate import Simulation, simulate_demo, simulate_volumes
from mri_example.demo import compare, demo, say
from mri_example.errors import InputError
from mri_example.evaluate import check_ending, write
from mri_example.evaluate import evaluate as evaluate_folders
from mri_example.inspection import inspect_root
from mri_example.masks import Masks
from mri_example.models import IRIM2D, MODELS, ChallengeIRIM, Reconstructor
from mri_example.pages import evaluation_page, training_page
from mri_example.progress import LINES
from mri_example.reconstruct import check_device, zero_filled
from mri_example.reconstruct import reconstruct as reconstruct_folder
from mri_example.summary import SUMMARIES
from mri_example.training.checkpoints import export as export_model
from mri_example.training.checkpoints import export_authors, load
from mri_example.training.data import SliceData, check_range
from mri_example.training.fit import DEFAULTS, fit
from mri_example.training.module import ReconstructionTask

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
    written = convert_raw(source, output)
    say(f"{len(written)} files written to {output}; those already there were kept")


def check(data: Path, quick: bool = False) -> None:
    """Look through a data root: counts, shapes, defects of each folder.

    Exits with 2 if anything is defective.

    Args:
        data: Folder with singlecoil_train, multicoil_val and the like.
        quick: Read one slice of each file instead of all.
    """
    reports = inspect_root(data, quick=quick)
    for report in reports:
        say(str(report))
    defects = sum(len(report.defects) for report in reports)
    if defects:
        raise InputError(
            f"{data} has {defects} defects: repair or remove what is named above"
        )


def reconstruct(
    data: Path,
    output: Path,
    checkpoint: Path | None = None,
    masks: Masks = Masks(),
    device: str = "",
    batch_size: int = 8,
    slab: int | None = None,
    skip_failures: bool = False,
) -> None:
    """Reconstruct every file of a folder, as the leaderboard takes it.

    Args:
        data: Folder of files in the fastMRI layout; those that bring a mask keep it.
        output: Folder for files of the same names, data set reconstruction.
        checkpoint: A trained model, .ckpt or .safetensors; without one the
            zero-filled images are written.
        masks: How files without a mask are undersampled.
        device: For example cpu or cuda; a GPU is used if there is one.
        batch_size: Slices that are reconstructed at once.
        slab: Slices of a slab, for a model of slabs that does not fit.
        skip_failures: Go on without the volumes that fail, and list them at the end.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    method = zero_filled if checkpoint is None else load(checkpoint, device)
    failures: list[str] = []
    written = reconstruct_folder(
        method,
        data,
        output,
        masks,
        device=device,
        batch_size=batch_size,
        slab=slab,
        on_failure=(lambda _, e: failures.append(str(e))) if skip_failures else None,
    )
    say(f"{len(written)} reconstructions written to {output}")
    if failures:
        say("\n  ".join([f"failed and not written: {len(failures)}", *failures]))
    if not written:
        raise InputError(f"no volume of {data} could be reconstructed: see above")


def evaluate(
    targets: Path,
    reconstructions: Path,
    acquisition: str | None = None,
    acceleration: float | None = None,
    output: Path | None = None,
    report: Path | None = None,
    skip_failures: bool = False,
) -> None:
    """Compare reconstructions with targets: NMSE, PSNR and SSIM per volume.

    Args:
        targets: Folder of files with targets.
        reconstructions: Folder of reconstructions with the same names.
        acquisition: Count only the volumes of this acquisition.
        acceleration: Count only the volumes of this acceleration.
        output: A .json or .csv file for the numbers.
        report: Where to write a page with scores, slices and errors; without it, beside
            the folder of reconstructions.
        skip_failures: Go on without the volumes that cannot be compared, and list them
            at the end and in the output.
    """
    if output is not None:
        check_ending(output)
    asked = (acquisition, acceleration)
    evaluation = evaluate_folders(
        targets, reconstructions, *asked, skip_failures=skip_failures
    )
    say(str(evaluation))
    if output is not None:
        write(evaluation, output)
    folder = reconstructions.resolve()
    page = report or folder.with_name(f"{folder.name}.html")
    say(f"report: {evaluation_page(evaluation, targets, reconstructions, page)}")


def export(
    output: Path,
    checkpoint: Path | None = None,
    authors: Path | None = None,
    model: Reconstructor = CHALLENGE,
) -> None:
    """Write a trained model as one safetensors file with its configuration.

    Args:
        output: The file, ending in .safetensors.
        checkpoint: A checkpoint such as best.ckpt.
        authors: Instead of it, a state dict of the authors' implementation of the
            i-RIM, as torch.save wrote it.
        model: The model that the authors' weights are for, with its options.
    """
    if (checkpoint is None) == (authors is None):
        raise InputError("export takes one of checkpoint and authors: give one of them")
    if authors is not None:
        export_authors(authors, model, output)
    elif checkpoint is not None:
        export_model(checkpoint, output)
    say(f"model written to {output}")


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "simulate": simulate,
    "convert": convert,
    "check": check,
    "fit": fit,
    "reconstruct": reconstruct,
    "evaluate": evaluate,
    "export": export,
    "compare": compare,
}
GROUPS = ("model", "masks", "training", "data", "trainer", "simulation")
CONFIGS = Path(__file__).parent / "configs"
OF_A_CLASS = re.compile(r"(Problem with given class_path .*?)( - Expected |$)")
OF_NO_TYPE = re.compile(r'key "(\S+)": Does not validate .* Given value: (.*)')


class ConfigFile(ActionConfigFile):
    """A file of options; `mri_example/configs/` is found from any folder."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: Any) -> None:
        """Add the options of a file to those that are known."""
        folder, _, name = str(value).rpartition("/")
        if folder == "mri_example/configs" and not Path(value).exists():
            value = str(CONFIGS / name)
        ActionConfigFile.apply_config(parser, cfg, dest, value)


class Parser(LightningArgumentParser):
    """A parser that says what is wrong, and not all that would have been right."""

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse, and refuse what is no set of options where one must be."""
        parsed = self._parsed(*args, **kwargs)
        command = parsed.get("subcommand")
        for name in GROUPS:
            key = f"{command}.{name}"
            value = parsed.get(key)
            if key in parsed and not isinstance(value, Namespace | Path):
                self.error(
                    f"{name} is {value!r}, but must hold options, `name: value` each; "
                    f"leave it out for the defaults"
                )
        model = parsed.get(f"{command}.model")
        if model is None:
            return parsed
        # a model that is chosen starts from its own defaults, not those of another
        self.set_defaults({f"{command}.model": {"class_path": model.class_path}})
        return self._parsed(*args, **kwargs)

    def _parsed(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().parse_args(*args, **kwargs)
        except UnicodeDecodeError:
            self.error("the configuration is not text: write it as YAML")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with code 2, unless another parser asked."""
        if not self.exit_on_error:
            super().error(message, ex)
        said = " ".join(message.split()).rstrip(".:")
        if match := OF_A_CLASS.search(said):
            said = match[1]
        elif match := OF_NO_TYPE.search(said):
            said = '"{}" is {}, which it cannot be'.format(*match.groups())
        if "Expected a <class 'tuple'>" in said:
            said += ": write what belongs together as a list, such as [4,8] or [4]"
        shown = self.prog.replace("[options] ", "")
        self.exit(2, f"error: {said}: `{shown} --help` lists what there is\n")


def _add_fit_options(parser: LightningArgumentParser) -> None:
    """Add what `fit` takes: `--trainer` is `lightning.Trainer`, `--data` `SliceData`.

    `--training` is `ReconstructionTask`, and `--model` the network that it trains.
    """
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="Folder for best.ckpt, last.ckpt and log/; a run goes on there.",
    )
    parser.add_argument(
        "--init",
        type=Path | None,
        default=None,
        help="A trained model, .ckpt or .safetensors, to start from.",
    )
    parser.add_argument(
        "--seed_everything", type=int, default=0, help="What all randomness follows."
    )
    parser.add_subclass_arguments(
        Reconstructor,
        "model",
        default={"class_path": f"{IRIM2D.__module__}.IRIM2D"},
        help=f"{', '.join(MODELS)}; --model.help NAME lists its options.",
    )
    of_ours: dict[str, Any] = {"skip": {"model", "masks", "seed"}, "instantiate": False}
    parser.add_class_arguments(ReconstructionTask, "training", **of_ours)
    parser.add_class_arguments(SliceData, "data", **of_ours)
    parser.add_class_arguments(Masks, "masks")
    parser.add_lightning_class_args(lightning.Trainer, "trainer")
    parser.set_defaults({f"trainer.{name}": v for name, v in DEFAULTS.items()})


def _run_fit(parser: LightningArgumentParser, config: Namespace) -> None:
    """Train as the options say, and print where the best checkpoint is."""
    seed = config.seed_everything
    check_range("seed_everything", seed, 0 <= seed < 2**32, "from 0 to 2**32 - 1")
    torch.manual_seed(seed)
    try:
        built = parser.instantiate(config)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"the options cannot be used ({said}): change them") from error
    trainer: dict[str, Any] = vars(built.trainer)
    task = ReconstructionTask(built.model, **vars(built.training))
    data = SliceData(masks=built.masks, seed=seed, **vars(built.data))
    start = time.monotonic()
    last = fit(task, data, config.output, init=config.init, **trainer)
    best = last.with_stem("best")
    if task.global_rank == 0:
        found = best if best.exists() else "none was written"
        sys.stdout.write(f"best checkpoint: {found}\n")
        if task.started:
            page = training_page(task, config.output, time.monotonic() - start)
            sys.stdout.write(f"report: {page}\n")


def parser_of(commands: Sequence[str]) -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of the command line, and that of each command."""
    whole = Parser(prog="python -m mri_example", description=__doc__)
    subcommands, parsers = whole.add_subcommands(), {}
    for name in commands:
        parser = Parser(description=SUMMARIES[name])
        parser.add_argument("--config", action=ConfigFile, help="Options as YAML.")
        if name == "fit":
            _add_fit_options(parser)
        else:
            parser.add_function_arguments(COMMANDS[name])
        subcommands.add_subcommand(name, parser, help=parser.description)
        parsers[name] = parser
    return whole, parsers


class _Terminated(KeyboardInterrupt):
    """Raised where SIGTERM arrives, so that nothing half-written is left behind."""


def _terminate(*_: Any) -> NoReturn:
    raise _Terminated


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """End what runs as Ctrl-C does; only the main thread can choose that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, or 2 if the input was at fault, 130 after Ctrl-C and 143 after SIGTERM.
    """
    LINES.restart()
    with _ending_on_sigterm():
        return _main(arguments)


def _main(arguments: list[str] | None) -> int:
    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    whole, parsers = parser_of([*COMMANDS])
    try:
        parsed = whole.parse_args(arguments)
        name = parsed.subcommand
        if name == "fit":
            _run_fit(parsers[name], parsed[name])
        else:
            options = vars(parsers[name].instantiate(parsed[name]))
            options.pop("config")
            COMMANDS[name](**options)
    except InputError as error:
        # without the traceback of a worker that loads data
        said = str(error).rsplit(f"{InputError.__name__}: ", 1)[-1].strip()
        sys.stderr.write(f"error: {said}\n")
        return 2
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, _Terminated)
        said = "terminated" if terminated else "interrupted"
        sys.stderr.write(f"{said}: run the same command again to go on\n")
        return 128 + (signal.SIGTERM if terminated else signal.SIGINT)
    return 0
