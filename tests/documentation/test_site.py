"""The site: every page can be reached, and pages look right in a browser."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
COLUMNS = 88  # of code, which fit beside both sidebars at 1280 pixels
WIDTHS = 1280, 390
SCHEMES = "light", "dark"
PAGES = ["index", "start/first_network", "tutorials/drift", "tutorials/mri"]
PAGES += ["howto/choose_a_layer", "examples/index", "trust", "benchmarks"]
PAGES += ["reference/couplings", "troubleshooting"]
WORDS = {  # and a page that a search must find
    "tutorial": "tutorials/index",
    "transformer": "tutorials/transformer",
    "cite": "citation",
    "memory": "tutorials/memory",
    "dropout": "howto/mixed_precision",
    "compile": "howto/compile",
    "DDP": "howto/distributed",
    "fastMRI": "howto/train_on_fastmri",
    "memcnn": "howto/from_memcnn",
    "checkpoint": "howto/from_checkpoint",
    "anchor": "tutorials/drift",
    "glow": "reference/nets",
}

spec = importlib.util.spec_from_file_location(
    "browser", Path(__file__).with_name("browser.py")
)
browser = importlib.util.module_from_spec(spec)
spec.loader.exec_module(browser)


def navigation() -> list[str]:
    return re.findall(r"[\w/]+\.md\b", (ROOT / "mkdocs.yml").read_text())


def included(match: re.Match[str]) -> str:
    """Return the file that a page includes, or the section of it."""
    name, _, section = match[1].partition(":")
    text = (ROOT / name).read_text()
    if not section:
        return text
    marks = (f"<!-- --8<-- [{end}:{section}] -->" for end in ("start", "end"))
    return text.split(next(marks))[1].split(next(marks))[0]


def text_of(page: Path) -> str:
    """Return the text of a page with what it includes."""
    return re.sub(r'^--8<-- "(.+)"$', included, page.read_text(), flags=re.MULTILINE)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    text = text_of(page)
    titles = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    kept = [re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles]
    entries = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", title) for title in kept} | {*entries}


def test_links_to_headings_lead_somewhere() -> None:
    found = 0
    for page in DOCS.rglob("*.md"):
        links = re.findall(
            r"\]\((?!http)([^)#\s]*)#([^)]+)\)", without_code(text_of(page))
        )
        for file, anchor in links:
            target = (page.parent / file).resolve() if file else page
            assert anchor in anchors_of(target), f"{page.name}: {file}#{anchor}"
            found += 1
    assert found > 50


def test_every_page_is_in_the_navigation_once() -> None:
    pages = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")]
    assert sorted(navigation()) == sorted(pages)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda p: p.stem)
def test_a_page_has_one_title_pictures_have_words_and_code_fits(page) -> None:
    text = text_of(page)
    code = re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)
    prose = without_code(text)
    assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1
    assert "![](" not in prose
    assert not [s for b in code for s in b.splitlines() if len(s) > COLUMNS]


def test_the_gallery_has_every_example() -> None:
    scripts = {path.name for path in (DOCS / "examples").glob("*.py")}
    gallery = (DOCS / "examples/index.md").read_text()
    linked = re.findall(r"\]\((\w+\.py)\)", gallery)
    assert sorted(linked) == sorted(scripts)
    pictures = {f"{Path(name).stem}.png" for name in scripts}
    assert pictures <= {*re.findall(r"images/(\w+\.png)", gallery)}


def test_the_site_loads_nothing_from_elsewhere() -> None:
    style = (DOCS / "assets/extra.css").read_text() + (ROOT / "mkdocs.yml").read_text()
    assert "url(http" not in style
    assert re.findall(r"https?://[^/\"]+", style) == ["https://example.org"]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("zensical")
    pytest.importorskip("l2m4m")
    copy = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "mkdocs.yml", copy)
    for name in ("LICENSE", "CHANGELOG.md", "README.md"):  # pages include them
        shutil.copy(ROOT / name, copy)
    for name in ("docs", "overrides", "invtorch"):
        shutil.copytree(ROOT / name, copy / name)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    built = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return copy / "site"


@pytest.fixture(scope="module")
def page(site, tmp_path_factory):
    if browser.CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with browser.browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


# what is wider than its place, and does not scroll by itself
TOO_WIDE = """(() => {
  const width = document.documentElement.clientWidth;
  const scrolls = (e) => e && e !== document.body &&
    (getComputedStyle(e).overflowX !== "visible" || scrolls(e.parentElement));
  return [...document.querySelectorAll("article *")]
    .filter((e) => e.getBoundingClientRect().right > width + 1 && !scrolls(e))
    .map((e) => e.outerHTML.slice(0, 200));
})()"""
CODE_THAT_SCROLLS = """[...document.querySelectorAll("article pre > code")]
  .filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.innerText)"""
# pages are dark or light as the system is, pictures loaded
SHADE = """getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g)
  .slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 3"""
BROKEN = """[...document.images].filter((i) => !i.naturalWidth).map((i) => i.src)"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_and_report_no_errors(site, page, width, scheme) -> None:
    for name in PAGES:
        page.visit(site / f"{name}.html", width, scheme)
        assert page.errors == [], name
        assert page.evaluate(TOO_WIDE) == [], name
        assert page.evaluate(BROKEN) == [], name
        assert (page.evaluate(SHADE) < 128) == (scheme == "dark"), name
        if width == max(WIDTHS):
            assert page.evaluate(CODE_THAT_SCROLLS) == [], name


RESULTS = """(() => {
  const found = [...document.querySelectorAll("*")].map((e) => e.shadowRoot)
    .filter(Boolean).flatMap((root) => [...root.querySelectorAll("[role=option]")]);
  return found.map((e) => e.href);
})()"""


@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_search_finds_words_in_pages_opened_as_files(site, page, word) -> None:
    page.visit(site / "index.html", max(WIDTHS), "light")
    page.evaluate("document.querySelector('.md-search__button').click()")
    page.wait_for("document.activeElement.shadowRoot?.activeElement?.tagName")
    page.call("Input.insertText", text=word)
    expected = (site / f"{WORDS[word]}.html").resolve().as_uri()
    page.wait_for(f"({RESULTS}).some((found) => found.startsWith({expected!r}))")
    assert page.errors == []
