"""The page of a run in a real browser: what it asks for, how it fits, and what its console says."""

import itertools
import json

import pytest

from .browser import chromium, opened
from .test_report import MARKUP, markup_set

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no chromium here (Debian: apt-get install chromium)"),
]
WIDE, PHONE = 1200, 390


@pytest.fixture
def tab(tmp_path):
    with opened(tmp_path / "profile") as found:
        yield found


@pytest.fixture
def pages(place, small):
    """A page of a real run, one of two side by side, and one of a stranger."""
    assert place.dd("run", *small).code == 0
    folder, sent = place.folder(), markup_set(place.path / "stranger")
    for words in ((folder, "out=one.html"), (folder, sent, "out=two.html"), (sent, "out=sent.html")):
        ended = place.dd("report", *map(str, words))
        assert ended.code == 0, ended.err
    return [place.path / f"{name}.html" for name in ("one", "two", "sent")]


def test_pages_in_a_browser(tab, pages):
    for page in pages:
        for width, dark in ((WIDE, False), (PHONE, False), (PHONE, True)):
            tab.show(page, width, dark=dark)
            assert tab.complaints() == []
            assert tab.requested() == [page.as_uri()]
            assert tab.value("document.documentElement.scrollWidth") <= width
            assert tab.value("[...document.images].every(one => one.complete && one.naturalWidth > 0 && one.alt)")
            assert tab.value("document.querySelectorAll('h1').length") == 1
            assert tab.value("document.scripts.length") == 0
            levels = tab.value("[...document.querySelectorAll('h1,h2,h3,h4')].map(one => +one.tagName[1])")
            assert all(below <= above + 1 for above, below in itertools.pairwise(levels))
            red, green, blue = map(int, tab.value("getComputedStyle(document.body).backgroundColor")[4:-1].split(","))
            assert (red + green + blue < 120) == dark
        printed = tab.pdf()
        assert printed.startswith(b"%PDF")
        assert len(printed) > 10_000


def test_images_are_drawn_as_they_are(tab, pages):
    tab.show(pages[0], WIDE)
    assert tab.value("document.images.length") == 20
    styles = "new Set([...document.images].map(one => getComputedStyle(one).imageRendering))"
    assert tab.value(f"[...{styles}]") == ["pixelated"]
    bars = tab.value("""[...document.querySelectorAll('.bars tr:has(svg)')].map(row => [
        row.querySelector('.fill').getBoundingClientRect().width
            / row.querySelector('.room').getBoundingClientRect().width,
        parseFloat(row.querySelector('.number').textContent)])""")
    assert len(bars) == 3 + 5  # the set and its references, and the classes
    for length, accuracy in bars:
        assert 100 * length == pytest.approx(accuracy, abs=0.06)


def test_what_a_page_must_not_do_is_forbidden_to_it(tab, pages):
    """Even if something slipped through: a script, an image or a style from elsewhere is refused by the policy."""
    tab.show(pages[2], WIDE)
    assert tab.value(f"document.body.innerText.includes({json.dumps(MARKUP[0])})")
    tab.value("document.body.insertAdjacentHTML('beforeend', '<img src=\"http://127.0.0.1:9/x.png\">')")
    tab.value("(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
              " document.body.append(s); })()")  # fmt: skip
    assert tab.value("window.ran") is None
    assert all("Content Security Policy" in one for one in tab.complaints())
    assert len(tab.complaints()) >= 2
    assert tab.blocked() == ["csp"]
