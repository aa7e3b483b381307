"""The list of commands, shown without importing what they need."""

from argparse import ArgumentParser

SUMMARIES = {
    "demo": "Train a small i-RIM on real heads and reconstruct one that it has never "
    "seen.",
    "simulate": "Simulate k-space in the fastMRI layout.",
    "convert": "Convert Cartesian ISMRMRD raw files to the fastMRI layout.",
    "check": "Look through a data root: counts, shapes, defects of each folder.",
    "fit": "Train a model on files in the fastMRI layout.",
    "reconstruct": "Reconstruct every file of a folder, as the leaderboard takes it.",
    "evaluate": "Compare reconstructions with targets: NMSE, PSNR and SSIM per volume.",
    "export": "Write a trained model as one safetensors file with its configuration.",
}


def overview() -> str:
    """Return the help of the command line: one line for each command."""
    parser = ArgumentParser(
        prog="python -m mri_example",
        description="MRI reconstruction with the i-RIM. `COMMAND --help` lists the "
        "options of a command.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in SUMMARIES.items():
        commands.add_parser(name, help=summary)
    return parser.format_help()
