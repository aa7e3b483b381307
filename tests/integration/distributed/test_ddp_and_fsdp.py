"""DDP and FSDP2 on two real processes give the gradients of a single one."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.integration.distributed.processes import ANCHORS
from tests.integration.distributed.scenarios import GRADIENTS
from tests.tolerances import assert_all_equal

pytestmark = [pytest.mark.xdist_group("two processes"), pytest.mark.slow]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Return the outcomes of both ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    module = "tests.integration.distributed.processes"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), str(port), folder / str(rank)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=600)
        assert rank.returncode == 0, errors
    return [torch.load(folder / str(r), weights_only=False) for r in (0, 1)]


def outcome(outcomes, name, anchors):
    for rank in outcomes:
        if isinstance(rank[name, anchors], Exception):
            raise rank[name, anchors]
    return [rank[name, anchors] for rank in outcomes]


@pytest.mark.parametrize("anchors", ANCHORS)
@pytest.mark.parametrize("name", sorted(GRADIENTS))
def test_gradients_equal_those_of_one_process(outcomes, name, anchors) -> None:
    for found, oracle in outcome(outcomes, name, anchors):
        assert_all_equal(found, oracle)


@pytest.mark.parametrize("anchors", ANCHORS)
def test_buckets_are_exchanged_while_layers_are_still_replayed(
    outcomes, anchors
) -> None:
    for events, depth in outcome(outcomes, "buckets", anchors):
        replays = [e for e in events if e != "bucket"]
        assert replays == [f"layer {i}" for i in reversed(range(depth))]
        assert events.count("bucket") >= 4
        between = events[events.index("bucket") : events.index("layer 0")]
        assert len([e for e in between if e != "bucket"]) >= depth // 2


def test_a_memory_report_counts_the_shards_of_its_process(outcomes) -> None:
    for reports in outcome(outcomes, "report_of_shards", 0):
        for *found, parameters, gradients, optimizer in reports:
            assert found == [parameters, gradients, optimizer]


@pytest.mark.parametrize("anchors", ANCHORS)
def test_an_inner_loss_of_a_container_that_is_sharded_whole(outcomes, anchors) -> None:
    for message in outcome(outcomes, "shard_the_container_with_an_inner_loss", anchors):
        assert "no loss depends on the output of its container" in message


@pytest.mark.parametrize("anchors", ANCHORS)
def test_a_conditioner_cannot_be_sharded_alone(outcomes, anchors) -> None:
    for message in outcome(outcomes, "shard_a_conditioner", anchors):
        assert "layer 3 (OrthogonalCoupling)" in message
        assert "fully_shard" in message
