"""Accuracy and memory of converted models: `python -m benchmarks.convert`.

A stage of a ResNet and PyTorch's `nn.TransformerEncoder` learn the digits of
scikit-learn: as they are, checkpointed, and converted by `invtorch.convert.reversible`
before training, or after it and then fine-tuned. All begin with the same parameters and
see the same batches. Memory is the peak of a training step, in counted bytes.
"""

import copy
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.networks import clear
from benchmarks.record import write
from benchmarks.time import measure
from invtorch.convert import reversible
from invtorch.planning import measure_memory

BATCH, RATE = 64, 2e-3
TRAINING = 1400  # samples; the others are for testing
OPTIONS: dict[str, dict[str, Any]] = {
    "checkpoint": {},
    "momentum": {"gamma": 0.5, "anchors": 2},
    "two_stream": {"anchors": 2},
}
REPETITIONS = 9


class Digits(NamedTuple):
    """Images of 8 × 8 between 0 and 1, and what they show."""

    images: Tensor
    labels: Tensor

    @classmethod
    def load(cls) -> tuple["Digits", "Digits"]:
        """Return those for training and for testing, in a fixed random order."""
        data = load_digits()
        order = torch.randperm(len(data.target), generator=_generator(0))
        images = torch.tensor(data.images, dtype=torch.float32)[order] / 16
        labels = torch.tensor(data.target)[order]
        training = cls(images[:TRAINING], labels[:TRAINING])
        return training, cls(images[TRAINING:], labels[TRAINING:])


class Block(nn.Module):
    """The block of a ResNet: an activation behind the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Add two convolutions to the input."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(out)))


class ResNet(nn.Module):
    """One stage of a ResNet."""

    path = "blocks"

    def __init__(self, depth: int = 16, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(channels) for _ in range(depth)])
        self.head = nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return ten logits for each image."""
        h: Tensor = self.blocks(self.stem(images.unsqueeze(1)))
        return self.head(h.mean((2, 3)))


class Transformer(nn.Module):
    """An encoder whose tokens are the rows of an image.

    It has no dropout: two streams with it cannot be inverted, because both networks of
    a block draw (`ReversibleBlock`).
    """

    path = "encoder.layers"

    def __init__(self, depth: int = 8, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(0.02 * torch.randn(8, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(width)
        self.encoder = nn.TransformerEncoder(
            layer, depth, norm, enable_nested_tensor=False
        )
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return ten logits for each image."""
        h: Tensor = self.encoder(self.embed(images) + self.position)
        return self.head(h.mean(1))


MODELS: dict[str, Callable[[], Any]] = {"ResNet": ResNet, "Transformer": Transformer}
EPOCHS = {"ResNet": 6, "Transformer": 25}  # and a third of them to fine-tune


def batches(data: Digits, epochs: int) -> Iterator[Digits]:
    """Yield the batches of some epochs, the same for every model."""
    generator = _generator(1)
    for _ in range(epochs):
        order = torch.randperm(len(data.labels), generator=generator)
        for chosen in order.split(BATCH):
            if len(chosen) == BATCH:
                yield Digits(data.images[chosen], data.labels[chosen])


def train(model: nn.Module, data: Digits, epochs: int, rate: float = RATE) -> None:
    """Train a model; the learning rate falls to 0 along a cosine."""
    torch.manual_seed(2)  # of dropout
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    steps = epochs * (len(data.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for batch in batches(data, epochs):
        optimizer.zero_grad()
        step(model, batch)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def step(model: nn.Module, batch: Digits) -> None:
    """Compute the gradients of a batch."""
    F.cross_entropy(model(batch.images), batch.labels).backward()


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Return the share of images that are recognized."""
    model.eval()
    correct = model(data.images).argmax(1) == data.labels
    return correct.double().mean().item()


def peak(model: nn.Module, data: Digits) -> int:
    """Count the bytes of a training step, above the model and its gradients."""
    model = copy.deepcopy(model).train()
    clear(model)
    action = partial(step, model, next(batches(data, 1)))
    action()
    return measure_memory(action).peak


def converted(model: Any, kind: str) -> Any:
    """Return a copy of a model whose blocks are converted."""
    model = copy.deepcopy(model)
    reversible(model, model.path, kind=kind, **OPTIONS[kind])
    return model


def rows_of_memory(name: str) -> list[dict[str, Any]]:
    """Count the bytes of a training step of all variants."""
    training, _ = Digits.load()
    torch.manual_seed(0)
    start = MODELS[name]()
    rows: list[dict[str, Any]] = []
    for variant in ("plain", *OPTIONS):
        model = start if variant == "plain" else converted(start, variant)
        row = {"model": name, "variant": variant, "bytes": peak(model, training)}
        rows.append(row)
        print(f"{name:12} {variant:24} {row['bytes'] / 1e6:6.2f} MB", flush=True)
    return rows


def rows_of(name: str) -> list[dict[str, Any]]:
    """Train all variants of a model."""
    torch.set_num_threads(1)
    training, testing = Digits.load()
    torch.manual_seed(0)
    start = MODELS[name]()
    rows: list[dict[str, Any]] = []

    def add(variant: str, model: nn.Module, **more: float) -> None:
        row = {"model": name, "variant": variant, "accuracy": accuracy(model, testing)}
        rows.append({**row, **more})
        percent = 100 * rows[-1]["accuracy"]
        print(f"{name:12} {variant:24} {percent:5.1f} %  {more or ''}", flush=True)

    plain = copy.deepcopy(start)
    train(plain, training, EPOCHS[name])
    add("plain", plain)
    for kind in OPTIONS:
        model = converted(start, kind)
        train(model, training, EPOCHS[name])
        add(kind, model)
    for kind in [kind for kind in OPTIONS if kind != "checkpoint"]:
        model = converted(plain, kind)
        before = accuracy(model, testing)
        train(model, training, EPOCHS[name] // 3)
        add(f"{kind}, fine-tuned", model, accuracy_before=before)
    return rows


def rows_of_time(name: str) -> list[dict[str, Any]]:
    """Time a training step of all variants, in turn."""
    training, _ = Digits.load()
    torch.manual_seed(0)
    start = MODELS[name]().train()
    models = {"plain": start} | {kind: converted(start, kind) for kind in OPTIONS}
    batch = next(batches(training, 1))
    actions = {key: partial(step, model, batch) for key, model in models.items()}
    times = measure(actions, REPETITIONS)
    reference = statistics.median(times["plain"])
    rows = []
    for key, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        row = {"model": name, "variant": key, "median_s": median}
        rows.append(row | {"quartiles_s": [low, high], "ratio": median / reference})
        print(f"{name:12} {key:24} {median / reference:5.2f}")
    return rows


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def main() -> None:
    """Count memory, train both models at once, then time."""
    torch.set_num_threads(1)
    settings = {
        "data": "digits of scikit-learn, 8 x 8",
        "blocks": {"ResNet": 16, "Transformer": 8},
        "epochs": EPOCHS,
        "epochs of fine-tuning": {name: n // 3 for name, n in EPOCHS.items()},
        "batch": BATCH,
        "options": OPTIONS,
        "dtype": "float32",
    }
    write("convert", settings, [row for name in MODELS for row in rows_of_memory(name)])
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        trained = [*pool.map(rows_of, MODELS)]
    accuracies = [row for rows in trained for row in rows]
    write("convert_accuracy", settings, accuracies)
    times = [row for name in MODELS for row in rows_of_time(name)]
    write("convert_time", settings | {"threads": 1, "reference": "plain"}, times)


if __name__ == "__main__":
    main()
