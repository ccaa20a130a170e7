"""Chromium without a network, for the tests of the local page and of the documentation.

Needs chromium, its driver and selenium (Debian: apt-get install chromium chromium-driver).
"""

import shutil

import pytest

pytest.importorskip("selenium")
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER, DRIVER = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which("chromedriver")
FLAGS = (
    *("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync", "disable-default-apps", "disable-dev-shm-usage"),
    "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)
WAIT = 60  # seconds; nothing is measured

needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="the page is not tried in a browser: apt-get install chromium chromium-driver",
)


def open_browser(width, profile):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    return browser


def wait(browser, condition):
    return WebDriverWait(browser, WAIT, poll_frequency=0.05).until(condition)


def texts_of(browser, selector):
    return browser.execute_script(f"return [...document.querySelectorAll('{selector}')].map(e => e.textContent)")
