"""The page of a run: whole in one file, of a bounded size, and shown by a browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from mri_example.data.files import KSpaceFile, read_reconstruction
from mri_example.evaluate import zero_filled_slice
from mri_example.masks import Masks
from mri_example.reconstruct import reconstruct, zero_filled
from mri_example.report import Slice, versions, write_page
from tests.mri.test_command_line import write_volume

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--enable-logging=stderr"),
)


def curve() -> Figure:
    figure = Figure()
    figure.subplots().plot([1, 2, 3], [3, 1, 2])
    return figure


def noise(seed: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def page(path, slices: int = 2, shape: tuple[int, int] = (20, 20), name: str = "a"):
    shown = [
        Slice(
            f"{name}, slice {i}",
            {"zero-filled": noise(i, shape), "i-RIM": noise(i + 100, shape)},
            noise(i + 200, shape),
        )
        for i in range(slices)
    ]
    tables = {"Scores": [["volume", "NMSE"], [name, "0.1"]]}
    facts = {"Configuration": {"data": name}, "Versions": versions()}
    curves = {"Training loss": curve()}
    parts = {"tables": tables, "slices": shown, "curves": curves, "facts": facts}
    return write_page(path, "A run", "Two volumes.", **parts)


class Addresses(HTMLParser):
    """Collect what a page asks a browser to load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        del tag
        self.found += [v for k, v in attrs if k in ("src", "href", "xlink:href")]


def test_a_page_loads_nothing_from_outside(tmp_path):
    parser = Addresses()
    text = page(tmp_path / "report.html").read_text()
    parser.feed(text)
    assert len(parser.found) > 6
    assert all(address.startswith(("data:", "#")) for address in parser.found)
    assert not re.search(r"@import|url\((?!#)", text)


@pytest.mark.parametrize("slices", [4, 12])
def test_a_page_of_large_noisy_slices_stays_below_5_MB(tmp_path, slices):
    path = page(tmp_path / "report.html", slices, shape=(640, 640))
    assert path.stat().st_size < 5e6


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a & b", '"quoted"'])
def test_names_are_shown_and_never_run(tmp_path, name):
    text = page(tmp_path / "report.html", name=name).read_text()
    assert name not in text
    assert text.count("<script>") == 1


def test_a_page_without_slices_and_curves_is_a_page(tmp_path):
    parts = {"tables": {}, "slices": (), "curves": {}, "facts": {}}
    path = write_page(tmp_path / "report.html", "A run", "Nothing.", **parts)
    text = path.read_text()
    assert "Nothing." in text
    assert "<script>" not in text


def test_images_of_a_slice_share_a_scale_and_errors_are_relative_to_white():
    target = np.full((8, 8), 2.0, np.float32)
    shown = Slice("a", {"half": target / 2, "exact": target}, target)
    pictures, errors = shown.pictures(), shown.errors()
    assert np.array_equal(pictures["exact"], pictures["target"])
    assert (pictures["half"] < pictures["target"]).all()
    assert not np.array_equal(errors["exact"], errors["half"])


def test_a_slice_that_is_zero_everywhere_is_drawn():
    dark = np.zeros((8, 8), np.float32)
    assert Slice("a", {"i-RIM": dark}, dark).errors()["i-RIM"].shape == (8, 8, 3)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_a_page_without_errors(tmp_path, width):
    path = page(tmp_path / "report.html")
    folder, size = (
        f"--user-data-dir={tmp_path / 'browser'}",
        f"--window-size={width},900",
    )
    done = subprocess.run(
        [BROWSER, *FLAGS, folder, size, "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    # the script ran: it marks the name of the image that is shown
    assert done.stdout.count('class="here"') == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@given(
    size=st.integers(12, 20),
    slices=st.integers(1, 3),
    acceleration=st.sampled_from([2.0, 4.0]),
    own=st.booleans(),
)
def test_the_zero_filled_image_of_a_page_is_that_of_the_mask_of_the_reconstruction(
    size, slices, acceleration, own, tmp_path_factory
) -> None:
    folder = tmp_path_factory.mktemp("data")
    mask = (np.arange(size) % 2 == 0).astype(np.float32)
    changes = {"mask": mask} if own else {}
    path = write_volume(folder / "in/a.h5", slices, size, **changes)
    masks = Masks("random", (0.1,), (acceleration,))
    (made,) = reconstruct(zero_filled, path.parent, folder / "out", masks)
    file = KSpaceFile.inspect(path)
    for index, expected in enumerate(read_reconstruction(made)):
        (found,) = zero_filled_slice(file, made, index).values()
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-9)
