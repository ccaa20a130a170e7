"""The page in a real browser without a network: start, upload, type, click, result; at desktop and phone width.

Needs chromium, its driver and selenium (Debian: apt-get install chromium chromium-driver).
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from browser import WAIT, needs_browser, open_browser, texts_of, wait
from PIL import Image

from detailclip_jax.inference import embeddings
from detailclip_jax.inference import model as inference
from detailclip_jax.inference.embeddings import Key, Table
from detailclip_jax.training import checkpoint, experiment
from detailclip_jax.training.mesh import make_mesh

pytestmark = [pytest.mark.check, needs_browser]
for name in ("starlette", "uvicorn"):
    pytest.importorskip(name)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of a tiny DetailCLIP whose parameters are noise."""
    config = tiny.tiny_config("detailclip")
    config.model.vocab_size = 49408
    shapes = experiment.build(config, make_mesh(jax.devices()[:1])).state_shapes
    rng, names = np.random.default_rng(0), ("params", "ema_params", "batch_stats")
    noise = lambda x: jax.device_put(np.asarray(rng.normal(0, 0.2, x.shape), x.dtype))
    path = tmp_path_factory.mktemp("runs") / "tiny"
    checkpoint.save_weights(path, {name: jax.tree.map(noise, getattr(shapes, name)) for name in names}, config, "noise")
    return path


@pytest.fixture(scope="module")
def embedded(workdir, tmp_path_factory):
    """A file of embeddings of nine images; the rows are noise."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    model = inference.load(workdir)
    rows = {}
    for number in range(9):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"{number}.png")
        rows[Key("image", f"{number}.png")] = rng.normal(size=model.embedding_width).astype(np.float32)
    embeddings.write(folder / "rows.npz", Table(embeddings.origin_of(model)._replace(root=str(folder)), rows))
    return folder / "rows.npz"


@pytest.fixture(scope="module")
def url(workdir, embedded):
    """The real command with the same checkpoint twice; Ctrl-C must end it without a traceback."""
    models = [f"--checkpoint={workdir}"] * 2
    command = [sys.executable, "-m", "detailclip_jax.demo", "--port=0", *models, f"--embeddings={embedded}"]
    options = {"env": {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, "text": True}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    assert server.stdout is not None
    lines = []
    for line in server.stdout:
        lines.append(line)
        if found := re.search(r"http://localhost:\d+", line):
            break
    else:
        pytest.fail("".join([*lines, *server.stderr]))
    assert any(line.startswith("compiled in") for line in lines)
    yield found[0]
    server.send_signal(signal.SIGINT)
    _, error = server.communicate(timeout=WAIT)
    assert server.returncode == 130 and error.strip() == "interrupted"


DESKTOP, PHONE = 1400, 390


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Makes the browser of a width, which serves all tests of that width."""
    browsers = {}

    def of_width(width):
        if width not in browsers:
            browsers[width] = open_browser(width, tmp_path_factory.mktemp("profile"))
        return browsers[width]

    yield of_width
    for browser in browsers.values():
        browser.quit()


@pytest.fixture
def browser(request, url, opened):
    """The page, loaded anew, with an empty console."""
    browser = opened(getattr(request, "param", DESKTOP))
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(url)
    return browser


both_widths = pytest.mark.parametrize("browser", (DESKTOP, PHONE), ids=("desktop", "phone"), indirect=True)


def requested(browser):
    """Addresses that the page requested."""
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            yield message["params"]["request"]["url"]


TIMES = """
const entries = [...performance.getEntriesByType("paint"), ...performance.getEntriesByType("resource")];
return entries.map((e) => `${Math.round(e.entryType == "paint" ? e.startTime : e.duration)} ms ${e.name}`);
"""


def print_times(browser):
    """Prints when the page was first painted and how long each answer took; `pytest -rP` shows it."""
    print("\n".join(line for line in browser.execute_script(TIMES) if "paint" in line or "/api/" in line))


def drawn(browser, selector):
    """The pixels of a canvas, as a text."""
    return browser.execute_script(f"return document.querySelector('{selector}').toDataURL()")


@both_widths
def test_start_upload_type_click(browser, url, tmp_path):
    wait(browser, lambda _: len(texts_of(browser, ".bars li")) >= 8)  # the first scene, with both models
    assert len(browser.find_elements(By.CSS_SELECTOR, ".model")) == 2

    file = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).save(file)
    browser.find_element(By.ID, "file").send_keys(str(file))
    preview = browser.find_element(By.ID, "preview")
    wait(browser, lambda _: preview.get_attribute("alt") == "The chosen image")

    box = browser.find_element(By.ID, "texts")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys("a frog\n\ntwo <b>red</b> kites")
    wanted = ["a frog", "two <b>red</b> kites"] * 2
    wait(browser, lambda _: texts_of(browser, ".bars .text") == wanted)
    assert texts_of(browser, ".maps figcaption") == wanted
    assert "Where each caption fits, read-out naclip" in texts_of(browser, ".model h3")
    Select(browser.find_element(By.ID, "readout")).select_by_value("plain")
    wait(browser, lambda _: "Where each caption fits, read-out plain" in texts_of(browser, ".model h3"))
    shares = [float(text.split()[-2]) for text in texts_of(browser, ".bars .value")]
    assert abs(sum(shares[:2]) - 100) <= 1 and shares[:2] == shares[2:]

    grey = "return [...document.querySelectorAll('.model:first-child img')].map((e) => getComputedStyle(e).filter)"
    similar, attention, kept, *maps = browser.execute_script(grey)
    assert kept == "none" and {similar, attention, *maps} == {"grayscale(1)"} and len(maps) == 2, "under heat maps only"

    limit = browser.find_element(By.ID, "texts-limit")
    assert not limit.is_displayed()
    box.send_keys("".join(f"\ncaption {number}" for number in range(17)))
    wait(browser, lambda _: len(texts_of(browser, ".bars .text")) == 32)
    assert limit.is_displayed() and limit.text == "Only the first 16 captions are compared, not the last 3."

    place = "#models .model:first-child .panels figure:first-child"
    frame = browser.find_element(By.CSS_SELECTOR, f"{place} .frame")
    before = drawn(browser, f"{place} canvas")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", frame)
    corner = {"x": -frame.size["width"] // 2 + 3, "y": -frame.size["height"] // 2 + 3}
    webdriver.ActionChains(browser).move_to_element_with_offset(frame, corner["x"], corner["y"]).click().perform()
    wait(browser, lambda _: "row 1, column 1" in texts_of(browser, f"{place} figcaption")[0])
    assert drawn(browser, f"{place} canvas") != before
    frame.send_keys(Keys.ARROW_RIGHT)
    wait(browser, lambda _: "row 1, column 2" in texts_of(browser, f"{place} figcaption")[0])

    slider = browser.find_element(By.ID, "ratio")
    kept = ".panels figure:last-child figcaption"
    assert texts_of(browser, kept)[0] == "8 of 16 patches kept"
    slider.send_keys(Keys.END)
    assert texts_of(browser, kept) == ["1 of 16 patches kept"] * 2

    browser.find_element(By.ID, "query").send_keys("a frog", Keys.ENTER)
    wait(browser, lambda _: len(texts_of(browser, "#found li")) == 9)
    more, found = browser.find_element(By.ID, "more"), browser.find_elements(By.CSS_SELECTOR, "#found li")
    if browser.execute_script("return innerWidth < 500"):
        assert more.text == "Show 3 more" and [item.is_displayed() for item in found] == [True] * 6 + [False] * 3
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", more)
        more.click()
    assert all(item.is_displayed() for item in found) and not more.is_displayed()
    loaded = "return [...document.querySelectorAll('#found img')].every(e => e.naturalWidth == 40)"
    wait(browser, lambda _: browser.execute_script(loaded))

    print_times(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    unnamed = [
        element.get_attribute("outerHTML")[:80]
        for element in browser.find_elements(By.CSS_SELECTOR, "input, textarea, button, [tabindex]")
        if element.is_displayed() and not element.accessible_name
    ]
    assert not unnamed
    assert not browser.find_element(By.ID, "error").is_displayed()
    assert not browser.get_log("browser"), "the console is empty"
    foreign = [address for address in requested(browser) if not address.startswith((url, "data:", "blob:"))]
    assert not [address for address in foreign if not address.startswith("chrome")]


DROP = """
const done = arguments[0];
fetch("/api/scenes/3.png").then((answer) => answer.blob()).then((blob) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([blob], "scene.png"));
  const event = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
  document.getElementById("drop").dispatchEvent(event);
  done();
});
"""


def test_an_image_is_dropped(browser):
    wait(browser, lambda _: texts_of(browser, ".bars li"))
    browser.execute_async_script(DROP)
    preview = browser.find_element(By.ID, "preview")
    wait(browser, lambda _: preview.get_attribute("alt") == "The chosen image")
    assert not browser.get_log("browser")


DROPS = """
const [place, texts, files] = arguments;
const dataTransfer = new DataTransfer();
if (texts) dataTransfer.setData("text/plain", texts);
for (const name of files) dataTransfer.items.add(new File(["no image"], name));
const sent = ["dragover", "drop"].map((name) => new DragEvent(name, { dataTransfer, bubbles: true, cancelable: true }));
for (const event of sent) document.getElementById(place).dispatchEvent(event);
return sent.map((event) => event.defaultPrevented);
"""


def test_text_is_dropped_where_it_goes_and_of_several_files_none(browser):
    wait(browser, lambda _: texts_of(browser, ".bars li"))
    error = browser.find_element(By.ID, "error")
    for place in ("texts", "query"):
        assert browser.execute_script(DROPS, place, "a frog", []) == [False, False]
    assert not error.is_displayed()
    assert browser.execute_script(DROPS, "texts", "", ["one.png", "two.png"]) == [True, True]
    wait(browser, lambda _: error.is_displayed())
    assert error.text == "2 files were dropped; drop one image"


HOLD = """
const [held, first, real] = [arguments[0], [], window.fetch];
window.asked = [];
window.release = () => first.forEach((answer) => answer());
window.fetch = (path, options) => {
  const answer = real(path, options);
  if (path !== held) return answer;
  window.asked.push(JSON.parse(options.body));
  return window.asked.length > 1 ? answer : new Promise((resolve) => first.push(() => resolve(answer)));
};
"""  # keeps the answer to the first request of a path until `release()`; `asked` are the requests
TOO_LARGE = """
const chosen = new DataTransfer();
chosen.items.add(new File([new Uint8Array(33 * 2 ** 20)], "large.png"));
document.getElementById("file").files = chosen.files;
document.getElementById("file").dispatchEvent(new Event("change"));
"""


def test_captions_typed_during_a_comparison_are_compared_once_and_its_end_hides_no_newer_error(browser):
    wait(browser, lambda _: texts_of(browser, ".bars li"))
    browser.execute_script(HOLD, "/api/texts")
    box = browser.find_element(By.ID, "texts")
    box.send_keys(Keys.CONTROL, "a")
    for typed in ("a frog", "\na kite", "\na pear"):
        box.send_keys(typed)
        time.sleep(0.5)
    assert [each["texts"] for each in browser.execute_script("return asked")] == [["a frog"]]
    browser.execute_script(TOO_LARGE)
    error, models = (browser.find_element(By.ID, name) for name in ("error", "models"))
    wait(browser, lambda _: error.is_displayed())
    assert error.text.startswith("too large") and models.get_attribute("aria-busy") == "true"
    browser.execute_script("release()")
    wanted = ["a frog", "a kite", "a pear"]
    wait(browser, lambda _: texts_of(browser, ".bars .text") == wanted * 2)
    assert [each["texts"] for each in browser.execute_script("return asked")] == [["a frog"], wanted]
    wait(browser, lambda _: models.get_attribute("aria-busy") == "false")
    assert error.is_displayed()


def test_a_late_answer_to_an_earlier_search_is_dropped(browser):
    wait(browser, lambda _: texts_of(browser, ".bars li"))
    browser.execute_script(HOLD, "/api/search")
    browser.find_element(By.ID, "query").send_keys("a frog", Keys.ENTER)
    browser.find_element(By.ID, "alike").click()
    title = browser.find_element(By.ID, "found-title")
    wait(browser, lambda _: title.text == "Found for this image")
    browser.execute_script("release()")
    wait(browser, lambda _: browser.find_element(By.ID, "models").get_attribute("aria-busy") == "false")
    assert title.text == "Found for this image"


def test_a_late_answer_for_an_earlier_patch_is_dropped(browser):
    place = "#models .model:first-child .panels figure:first-child"
    wait(browser, lambda _: texts_of(browser, ".bars li"))
    browser.execute_script(HOLD, "/api/neighbours")
    browser.execute_script("choose(0.1, 0.1); choose(0.9, 0.9)")
    wait(browser, lambda _: "row 4, column 4" in texts_of(browser, f"{place} figcaption")[0])
    browser.execute_script("release()")
    wait(browser, lambda _: browser.find_element(By.ID, "models").get_attribute("aria-busy") == "false")
    assert "row 4, column 4" in texts_of(browser, f"{place} figcaption")[0]


IN_SIGHT = """
const [element, place] = arguments;
scrollTo(0, place);
const { left, top, bottom } = element.getBoundingClientRect();
const seen = bottom <= innerHeight && document.elementFromPoint(left + 5, top + 5) === element;
return seen && (place === 0) === (scrollY === 0);
"""  # whether an element is seen, and nothing above it, after scrolling to a place


@both_widths
def test_an_unreadable_file_is_one_line(browser, tmp_path):
    wait(browser, lambda _: texts_of(browser, ".bars li"))
    file = tmp_path / "broken.png"
    file.write_bytes(b"no image")
    browser.find_element(By.ID, "file").send_keys(str(file))
    error = browser.find_element(By.ID, "error")
    wait(browser, lambda _: error.is_displayed())
    assert error.text.startswith("not an image") and error.get_attribute("role") == "alert" and "b'" not in error.text
    for place in (0, 10**6):
        assert browser.execute_script(IN_SIGHT, error, place)
    scene = browser.find_element(By.CSS_SELECTOR, ".scenes button:nth-child(2)")
    browser.execute_script("arguments[0].focus()", scene)
    scene.click()  # the error does not cover what has the focus
    wait(browser, lambda _: not error.is_displayed())
