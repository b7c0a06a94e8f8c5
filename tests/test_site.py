"""The site of the docs: it builds without a warning, and its pages can be read in a browser."""

import subprocess
import sys
from pathlib import Path

import pytest
from browsing import fetched, wide

pytest.importorskip("sphinx", reason="extra docs")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site():
    """As `make docs` builds it: what is there already is not read again."""
    done = subprocess.run([sys.executable, "docs/conf.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ROOT / "build" / "site" / "html"


def test_every_public_name_has_its_place(site):
    lines = (ROOT / "tests" / "public_api.txt").read_text(encoding="utf-8").splitlines()
    names = [line.partition("(")[0] for line in lines if not line.startswith(" ")]
    homes = {name: name.rpartition(".")[0] for name in names}
    pages = {home: (site / "reference" / f"{home}.html").read_text("utf-8") for home in homes.values()}
    assert not [
        name for name, home in homes.items() if name not in pages and f'id="{name}"' not in pages[home]
    ]


def test_in_a_browser(site, browser, tmp_path):
    """Nothing fails and nothing is fetched; no page is wider than its window, and it has two colours."""
    ask = browser.execute_script
    browser.get_log("browser")
    for name in ("index", "performance", "tasks", "reference/attsnn.ops", "kernels"):
        browser.get((site / f"{name}.html").as_uri())
        assert ask("return [...document.images].every(i => i.complete && i.naturalWidth > 0)"), name
        assert ask("return document.querySelectorAll('h1').length") == 1
        grounds = {}
        for width, dark in ((1200, False), (1200, True), (390, False)):
            wide(browser, width, dark)
            assert ask("return document.documentElement.scrollWidth") <= width, (name, width)
            grounds[dark] = ask("return getComputedStyle(document.body).backgroundColor")
            browser.save_screenshot(str(tmp_path / f"{name.replace('/', '-')}-{width}-{dark}.png"))
        assert grounds[False] == "rgb(255, 255, 255)" and grounds[True] != grounds[False]
        wide(browser, 1200)
    assert browser.get_log("browser") == []
    assert fetched(browser) == []


def test_search(site, browser):
    """Finds a name of the reference, without a server."""
    browser.get((site / "search.html").as_uri() + "?q=SpikingLayer")
    from selenium.webdriver.support.ui import WebDriverWait

    found = "return [...document.querySelectorAll('#search-results a')].map(a => a.textContent).join(' ')"
    WebDriverWait(browser, 20).until(lambda b: "SpikingLayer" in b.execute_script(found))
