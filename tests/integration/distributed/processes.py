"""Run every scenario once in two gloo processes: `python -m ... RANK PORT FILE`."""

import sys
import traceback

import torch
import torch.distributed

from tests.integration.distributed.scenarios import GRADIENTS, OTHERS

ANCHORS = (0, 8)  # pure inversion, and the default


def outcomes(rank: int) -> dict[tuple[str, int], object]:
    """Return what each scenario returned, or the traceback it ended with."""
    found: dict[tuple[str, int], object] = {}
    for name, scenario in {**GRADIENTS, **OTHERS}.items():
        for anchors in ANCHORS:
            try:
                found[name, anchors] = scenario(rank, anchors)
            except Exception:  # a test shows it
                found[name, anchors] = RuntimeError(traceback.format_exc())
    return found


def main(rank: int, port: int, path: str) -> None:
    """Take part as one of two processes and write what came out."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    torch.save(outcomes(rank), path)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
