"""The page in a real browser: it fetches nothing, complains of nothing, and its explorer does what it says."""

import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from equimid.evaluation.figures import draw_attention, draw_neighbours, record_explorer
from equimid.records import write_records
from equimid.report import write_report
from helpers.looking import Colours, photograph_folder, study_in
from helpers.symmetries import ELEMENTS, posed

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium: install chromium, chromium-browser or google-chrome", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")

SAID = "#explorer .said"
# what a canvas shows, cell by cell: the colour in the middle of each of the n x n cells
CELLS = """(canvas, n) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height), unit = canvas.width / n, cells = [];
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(canvas, 0, 0);
  for (let i = 0; i < n * n; i++) {
    const [x, y] = [i % n, Math.floor(i / n)].map((c) => Math.floor((c + 0.5) * unit));
    cells.push(Array.from(context.getImageData(x, y, 1, 1).data));
  }
  return cells;
}"""


class Shifted(Colours):
    """Maps that do not follow: moved by one patch to the right."""

    def forward_features(self, images, layers=()):
        found = super().forward_features(images, layers)
        return type(found)(found.cls, {layer: m.roll(1, -1) for layer, m in found.maps.items()})


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    data = photograph_folder(folder / "data", classes=("a cat", "a dog"))
    runs = []
    for name, encoder in (("follows", Colours()), ("a_run_of_a_rather_long_name_that_stays_behind", Shifted())):
        study = study_in(folder / name, encoder, data)
        settings = {"seed": 0, "backbone": {"name": "vit"}, "ser": {"weight": 1.0, "layers": [2]}}
        (folder / name / "config.yaml").write_text(yaml.safe_dump(settings))
        records = [*record_explorer(study, data), *draw_attention(study, data), *draw_neighbours(study, data)]
        write_records(folder / name / "records.jsonl", records)
        runs.append(folder / name)
    return write_report(runs, folder / "page.html")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, page_file):
    """The page, opened, and what went wrong in it; at the end nothing may have."""

    def opener(width=1100, **context):
        page = browser.new_context(viewport={"width": width, "height": 800}, **context).new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(page_file.as_uri())
        if context.get("java_script_enabled", True):
            # not wait_for_function: where it has to ask twice, the page's own policy forbids its eval
            sync_api.expect(page.locator(SAID)).not_to_be_empty(timeout=60_000)
        pages.append(page)
        return page

    pages, requests, complaints = [], [], []
    yield opener
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [page_file.as_uri()] * len(pages)
    for page in pages:
        page.context.close()


def cells(page, view, count=5):
    """(count, count, 4) of one of the four views; transparent beyond the picture."""
    found = page.locator("#explorer figure canvas").nth(view).evaluate(CELLS, count)
    return np.array(found, np.uint8).reshape(count, count, 4)


def press(page, key):
    """Press it, and wait until the page says something else."""
    before = page.inner_text(SAID)
    page.keyboard.press(key)
    sync_api.expect(page.locator(SAID)).not_to_have_text(before, timeout=60_000)
    return page.inner_text(SAID)


def pick(page, key, value):
    page.locator(f"#explorer input[data-key={key}][value='{value}']").check(force=True)
    page.wait_for_timeout(60)


def test_every_pose_is_shown_as_it_is(opened, page_file):
    """Photograph and upright map, posed by the page, against numpy's turns and flips; the network follows exactly."""
    page = opened()
    pick(page, "layer", 0)
    pick(page, "scale", 1)
    pick(page, "turn", 0)
    upright = [np.moveaxis(cells(page, view, 20), -1, 0) for view in range(4)]
    # five cells for a map of four patches, centred: 20 cells of a quarter of a patch, the outer two empty
    assert (upright[1][3, 2:-2, 2:-2] == 255).all()
    assert not upright[1][3, :2].any()
    with Image.open(next(page_file.parent.glob("follows/pictures/explorer_image_1_????????.png"))) as picture:
        photograph = np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)
    assert np.array_equal(upright[0][:3, 2:-2, 2:-2], photograph[:, ::2, ::2])
    for turns, flip in ELEMENTS:
        pick(page, "turn", turns)
        pick(page, "flip", int(flip))
        for view in (0, 2):
            seen = np.moveaxis(cells(page, view, 20), -1, 0)
            assert np.array_equal(seen, posed(upright[view], turns, flip)), (view, turns, flip)
        assert np.array_equal(cells(page, 1, 20), cells(page, 2, 20)), "the map follows"
        said = page.inner_text(SAID)
        assert "Place 1.00, relative error 0.00, centred cosine 1.00" in said
        assert (f"turned by {90 * turns}°" if turns else "not turned") in said
        assert ("flipped" in said) == flip


def test_a_network_that_does_not_follow_is_seen_to_do_so(opened):
    page = opened()
    for key, value in (("subject", 1), ("scale", 1), ("turn", 2), ("flip", 0)):
        pick(page, key, value)
    assert not np.array_equal(cells(page, 1, 20), cells(page, 2, 20))
    assert len(np.unique(cells(page, 3, 20).reshape(-1, 4), axis=0)) > 3
    assert "stays_behind" in page.inner_text(SAID)
    table = page.locator("#explorer table").inner_text()
    assert "follows" in table
    assert "1.00" in table
    assert page.locator("#explorer td[aria-current]").count() == 1


def test_keys_change_what_is_shown(opened):
    page = opened()
    page.locator("#explorer input[data-key=image]:checked").focus()
    said, shown = page.inner_text(SAID), cells(page, 2)
    assert "layer 2 (SER), image 1 (" in said
    assert "turned by 90°, on 4 × 4 patches" in said
    assert "turned by 180°" in press(page, "r")
    assert not np.array_equal(cells(page, 2), shown)
    assert ": flipped, turned by 180°" in press(page, "F")
    shown = cells(page, 1)
    assert "scaled from 4 × 4 to 5 × 5 patches" in press(page, "s")
    assert not np.array_equal(cells(page, 1), shown)
    shown = cells(page, 1)
    assert "layer 4, image 1" in press(page, "ArrowUp")
    assert not np.array_equal(cells(page, 1), shown)
    assert "layer 2 (SER), image 1" in press(page, "ArrowDown")
    assert "image 2 (" in press(page, "i")
    assert page.evaluate("document.activeElement.dataset.key") == "image", "the focus stays"
    said = page.inner_text(SAID)
    page.keyboard.press("Control+f")  # the browser's own
    page.locator("summary").first.focus()
    page.keyboard.press("r")
    page.wait_for_timeout(60)
    assert page.inner_text(SAID) == said, "keys outside are not the explorer's"


def test_every_control_is_reached_by_tab_and_seen(opened):
    page = opened()
    page.locator("#explorer input").first.focus()
    page.keyboard.press("Shift+Tab")
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.dataset.key"))
        outline = "getComputedStyle(document.activeElement.closest('.options')).outlineStyle"
        assert page.evaluate(outline) == "solid", reached
    assert reached == ["subject", "image", "layer", "turn", "flip", "scale"]
    assert page.locator("#explorer fieldset legend").all_inner_texts()[2] == "Layer"


def test_every_picture_has_words_that_follow(opened):
    page = opened()
    unnamed = """[...document.querySelectorAll("img, svg, canvas")].filter((e) =>
      !e.closest("[aria-hidden=true]") && !(e.alt || e.getAttribute("aria-label")) && !e.closest("svg[aria-label]"))
      .map((e) => e.outerHTML.slice(0, 200))"""
    assert page.evaluate(unnamed) == []
    canvases = page.locator("#explorer figure canvas")
    assert canvases.count() == 4
    labels = [canvases.nth(i).get_attribute("aria-label") for i in range(4)]
    assert len(set(labels)) == 4
    assert all("turned by 90°" in label for label in labels)
    pick(page, "turn", 3)
    assert "turned by 270°" in canvases.nth(3).get_attribute("aria-label")
    assert page.locator(SAID).get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_s_width_is_enough(opened, scheme):
    page = opened(360, color_scheme=scheme)
    for value in range(2):
        pick(page, "subject", value)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    box = page.locator("#explorer .views").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360


def test_print_shows_the_present_state(opened):
    page = opened()
    page.emulate_media(media="print")
    assert not page.locator("#explorer form").is_visible()
    assert page.locator(SAID).is_visible()
    assert page.locator("#explorer figure canvas").first.is_visible()


def test_without_javascript_it_says_so(opened):
    page = opened(java_script_enabled=False)
    assert page.locator("noscript").inner_text().startswith("Exploring needs JavaScript")
    assert not page.locator("#explorer").is_visible()


def test_another_script_is_refused(browser, page_file, tmp_path):
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(page_file.read_text().replace("</main>", "<script>document.title = 'run'</script></main>"))
    page = browser.new_page()
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(spoilt.as_uri())
    assert page.title() != "run"
    assert any("Content Security Policy" in text for text in complaints)
    page.close()
