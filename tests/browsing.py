"""A browser for the pages that the project makes: the fixture `browser` of conftest.py, and what asks it."""

import json
import shutil
from collections.abc import Iterator

import pytest


def start() -> Iterator:
    """Chromium, driven by selenium; skips where one of the two is not installed."""
    binary = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no Chromium")
    webdriver = pytest.importorskip("selenium.webdriver", reason="no Chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(driver)
    found = webdriver.Chrome(options=options, service=service)
    yield found
    found.quit()


def wide(browser, width: int, dark: bool = False, media: str = "") -> None:
    """A window of that width, where light or dark pages are preferred, or on paper (`media="print"`)."""
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def fetched(browser) -> list[str]:
    """What was asked for since the last call that is no file and not in the page itself."""
    urls = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if not url.startswith(("file:", "data:"))]
