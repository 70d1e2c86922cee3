"""The page of `cocoseg view` in chromium, as people use it."""

import csv
import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from cocoseg.shards.reader import Sample, ShardSet
from cocoseg.storage import locate
from cocoseg.train.run_log import RunLog
from cocoseg.viewer.export import export_page
from cocoseg.viewer.run import ViewServer, open_view
from cocoseg.viewer.sources import open_sources
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from view_client import IGNORE, erased

pytestmark = pytest.mark.browser
PAGES = ("samples", "classes", "evaluation", "comparison", "labels", "left-out", "runs")
PATIENCE = 120_000  # milliseconds: how long a busy machine may need for one step
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run-a"
    log = RunLog(locate(folder), 0, 0)
    for step in range(1, 6):
        rates = {"head": 0.1, "backbone": 0.01}
        log.write(step, loss=1 / step, learning_rate=rates, images_per_second=9.0, data_wait=0.1)
    log.write(5, val_mIoU=0.25, val_loss=0.7, val_IoU={"background": 0.5, "cat": None, "dog": 0.4})
    log.picture(5, "validation/one", np.full((20, 60, 3), 99, np.uint8))
    log.close()
    (folder / "config.yaml").write_text("train:\n  max_steps: 5\n")
    return folder


@pytest.fixture(scope="module")
def second(evaluation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another evaluation of the same shards: one image is worse, one is better."""
    folder = tmp_path_factory.mktemp("other") / "scores-b"
    shutil.copytree(evaluation, folder)
    rows = list(csv.DictReader((evaluation / "images.csv").open()))
    rows[2]["mIoU"], rows[4]["mIoU"] = "0.05", "0.99"
    with (folder / "images.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def shards(golden: Any) -> Path:
    """The shards that were scored."""
    return Path(golden.shards("train"))


@pytest.fixture(scope="module")
def server(shards: Path, evaluation: Path, second: Path, run: Path) -> Iterator[ViewServer]:
    opened = open_view([str(shards), str(evaluation), str(second), str(run)])
    opened.start()
    yield opened
    opened.stop()


class Watched:
    """A page that may neither complain nor ask another host."""

    def __init__(
        self, browser: Browser, address: str, expected: tuple[str, ...] = (), **options: Any
    ) -> None:
        self.expected = expected
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(PATIENCE)
        self.page: Page = self.context.new_page()
        self.address = address
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("request", self._asked)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(self.expected):
            self.complaints.append(message.text)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.address, "blob:", "data:")):
            self.complaints.append(f"asked {request.url}")

    def open(self, query: str = "") -> Page:
        self.page.goto(self.address + query)
        self.page.wait_for_load_state("networkidle")
        return self.page


@pytest.fixture
def watch(browser: Browser, server: ViewServer) -> Iterator[Callable[..., Watched]]:
    watched: list[Watched] = []

    def open_one(address: str = server.address, **options: Any) -> Watched:
        watched.append(Watched(browser, address, **options))
        return watched[-1]

    yield open_one
    for one in watched:
        one.context.close()
        assert one.complaints == []


def until(page: Page, expression: str, arg: Any = None) -> None:
    """Wait for a value that is true; Playwright's own way needs an eval that the page forbids."""
    for _ in range(PATIENCE // 50):
        if page.evaluate(expression, arg):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


def painted(page: Page, selector: str) -> list[int]:
    """Return how many different colors each canvas shows."""
    found: list[int] = page.eval_on_selector_all(
        selector,
        """canvases => canvases.map(canvas => {
            const { width, height } = canvas;
            if (!width) return 0;
            const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
            return new Set(new Uint32Array(data.buffer)).size;
        })""",
    )
    return found


def pixel(page: Page, panel: str, x: int, y: int) -> list[int]:
    """Return a pixel of a panel's canvas."""
    canvas = page.get_by_role("img", name=panel, exact=True)
    found: list[int] = canvas.evaluate(
        "(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data]", [x, y]
    )
    return found[:3]


def keys_shown(page: Page) -> list[str]:
    labels = page.locator("#grid .open span").all_inner_texts()
    return [label.split(" ")[0] for label in labels]


def wait_for_grid(page: Page, count: int) -> None:
    expect(page.locator("#grid .open span").filter(has_text="0000")).to_have_count(count)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("tab", PAGES)
def test_every_page_is_shown_and_accessible(
    watch: Callable[..., Watched], tab: str, scheme: str
) -> None:
    page = watch(color_scheme=scheme).open(f"?tab={tab}")
    expect(page.locator("nav a[aria-current=page]")).to_have_attribute("data-tab", tab)
    expect(page.locator("main")).not_to_be_empty()
    found = Axe().run(page).response["violations"]
    serious = [one["id"] for one in found if one["impact"] in ("serious", "critical")]
    assert serious == [], json.dumps(found, indent=1)


def test_the_grid_shows_every_sample(watch: Callable[..., Watched], samples: list[Sample]) -> None:
    page = watch().open()
    wait_for_grid(page, len(samples))
    assert keys_shown(page) == [sample.key for sample in samples]
    until(page, "[...document.querySelectorAll('#grid canvas')].every(c => c.width)")
    assert min(painted(page, "#grid canvas")) > 10
    expect(page.locator("#status")).to_have_text(f"{len(samples)} of {len(samples)} samples")


def test_more_samples_are_added_until_the_screen_is_full(
    watch: Callable[..., Watched], coco_set: Any, tmp_path: Path
) -> None:
    for image_id in range(130):
        coco_set.photo(image_id)
    coco_set.prepare(tmp_path / "shards")
    server = open_view([str(tmp_path / "shards")])
    server.start()
    try:
        page = watch(server.address, viewport={"width": 1300, "height": 3000}).open()
        wait_for_grid(page, 120)
        page.mouse.wheel(0, 100_000)
        wait_for_grid(page, 130)
        page.close()
    finally:
        server.stop()


def test_filters_and_orders_are_addresses(
    watch: Callable[..., Watched], samples: list[Sample]
) -> None:
    page = watch().open()
    train_id = max(range(1, 81), key=lambda i: sum(bool((s.mask == i).any()) for s in samples))
    share = {s.key: (s.mask == train_id).mean() for s in samples}
    wanted = sorted((key for key in share if share[key]), key=lambda key: -share[key])
    page.get_by_label("Class").select_option(str(train_id))
    wait_for_grid(page, len(wanted))
    page.get_by_label("Sort").select_option("share")
    page.get_by_label("descending").check()
    until(
        page,
        "key => document.querySelector('#grid .open span')?.textContent.startsWith(key)",
        arg=wanted[0],
    )
    wait_for_grid(page, len(wanted))
    assert keys_shown(page) == wanted
    again = watch().open(page.url[page.url.index("?") :])
    wait_for_grid(again, len(wanted))
    assert keys_shown(again) == wanted
    assert again.get_by_label("Class").input_value() == str(train_id)
    again.get_by_label("Search").fill(wanted[-1])
    wait_for_grid(again, 1)
    again.get_by_role("button", name="Reset").click()
    wait_for_grid(again, len(samples))
    again.get_by_label("Search").fill("nowhere")
    expect(again.locator("#status")).to_contain_text("No sample matches")


def test_one_sample_by_keyboard(watch: Callable[..., Watched], samples: list[Sample]) -> None:
    page = watch().open()
    wait_for_grid(page, len(samples))
    page.locator("#grid .open").first.focus()
    page.keyboard.press("Enter")
    title = page.locator("#detail h2")
    expect(title).to_contain_text(samples[0].key)
    page.keyboard.press("ArrowRight")
    expect(title).to_contain_text(samples[1].key)
    assert "sample=1" in page.url
    page.keyboard.press("ArrowLeft")
    expect(title).to_contain_text(samples[0].key)
    page.keyboard.press("o")
    until(page, "new URLSearchParams(location.search).get('outline') === '1'")
    page.keyboard.press("f")
    until(page, "new URLSearchParams(location.search).get('fill') === '0'")
    page.keyboard.press("f")
    for key, name in (("d", "difference"), ("p", "prediction"), ("g", "ground truth")):
        page.keyboard.press(key)  # that panel alone
        expect(page.locator(".panel b")).to_have_count(1)
        expect(page.locator(".panel b")).to_contain_text(name)
    page.keyboard.press("g")
    expect(page.locator(".panel b")).to_have_count(6)
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    until(page, "!new URLSearchParams(location.search).has('sample')")
    for key, layer in (("d", "difference-0"), ("p", "prediction-0")):
        page.keyboard.press(key)
        until(
            page, "layer => new URLSearchParams(location.search).get('layer') === layer", arg=layer
        )
    page.keyboard.press("g")
    until(page, "!new URLSearchParams(location.search).has('layer')")


def test_zoom_shows_the_class_of_the_pixel_under_the_pointer(
    watch: Callable[..., Watched], samples: list[Sample], names: list[str]
) -> None:
    page = watch(viewport={"width": 1400, "height": 900}).open("?sample=4")
    expect(page.locator("#detail h2")).to_contain_text(samples[4].key)
    mask = samples[4].mask
    rows, columns = np.nonzero((mask != 0) & (mask != IGNORE))
    y, x = int(rows[len(rows) // 2]), int(columns[len(rows) // 2])
    page.keyboard.press("+")
    page.keyboard.press("+")
    page.keyboard.press("0")
    panel = page.locator(".panel").nth(1)
    scale, left, top = panel.locator("canvas").evaluate(
        "canvas => { const m = new DOMMatrix(canvas.style.transform); return [m.a, m.e, m.f]; }"
    )
    box = panel.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + left + (x + 0.5) * scale, box["y"] + top + (y + 0.5) * scale)
    predicted = 0 if y in range(*erased(4, samples[4]).indices(len(mask))) else mask[y, x]
    under = page.locator("#under")
    expect(under).to_contain_text(f"{x}, {y}: ground truth: {names[mask[y, x]]}")
    expect(under).to_contain_text(f": {names[predicted]}")
    before = scale
    page.mouse.wheel(0, -400)
    until(
        page,
        "scale => new DOMMatrix(document.querySelectorAll('.panel canvas')[1].style.transform).a"
        " > 2 * scale",
        arg=before,
    )
    expect(under).to_contain_text(f"{x}, {y}: ")


def test_a_class_can_be_hidden(
    watch: Callable[..., Watched], samples: list[Sample], names: list[str]
) -> None:
    page = watch().open("?sample=4")
    expect(page.locator("#detail h2")).to_contain_text(samples[4].key)
    mask = samples[4].mask
    rows, columns = np.nonzero((mask != 0) & (mask != IGNORE))
    y, x = int(rows[len(rows) // 2]), int(columns[len(rows) // 2])
    plain = pixel(page, "image", x, y)
    assert pixel(page, "ground truth", x, y) != plain
    page.locator(".facts").get_by_label(names[mask[y, x]], exact=True).uncheck()
    assert pixel(page, "ground truth", x, y) == plain


def test_truth_and_prediction_lie_under_a_slider(
    watch: Callable[..., Watched], samples: list[Sample]
) -> None:
    page = watch().open("?sample=1")
    page.get_by_label("Panels").select_option("slider")
    expect(page.locator(".panel")).to_have_count(1)
    divider = page.get_by_label("Divider between ground truth and prediction")
    cut = "element => getComputedStyle(element).clipPath"
    upper = page.locator(".panel canvas").nth(1)
    before = upper.evaluate(cut)
    divider.fill("80")
    assert upper.evaluate(cut) != before
    assert "panels=slider" in page.url


def test_a_confusion_leads_to_its_images(watch: Callable[..., Watched], server: ViewServer) -> None:
    page = watch().open("?tab=evaluation")
    rows = page.locator("table", has_text="The most frequent confusions").locator("tbody tr")
    images = int(rows.first.locator("a").inner_text())
    rows.first.locator("a").click()
    wait_for_grid(page, images)
    assert "pair=" in page.url
    expect(page.locator("#status")).to_contain_text("predicted as background")
    until(page, "[...document.querySelectorAll('#grid canvas')].every(c => c.width)")
    red = page.eval_on_selector(
        "#grid canvas",
        """canvas => {
            const { width, height } = canvas;
            const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
            let count = 0;
            for (let i = 0; i < data.length; i += 4) count += data[i] > data[i + 1] + 60;
            return count;
        }""",
    )
    assert red > 0
    page.go_back()
    expect(page.locator("nav a[aria-current=page]")).to_have_attribute("data-tab", "evaluation")


def test_a_cell_of_the_map_can_be_clicked(watch: Callable[..., Watched]) -> None:
    page = watch().open("?tab=evaluation")
    page.locator(".chart .heatmaplayer image").first.wait_for(state="attached")
    area = page.locator(".chart .nsewdrag").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 12)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 8)
    page.locator(".chart .hovertext").first.wait_for()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 8)
    until(page, "new URLSearchParams(location.search).has('pair')")


def test_two_evaluations_are_compared(watch: Callable[..., Watched], samples: list[Sample]) -> None:
    page = watch().open("?tab=comparison")
    expect(page.get_by_role("link", name="1 became worse")).to_be_visible()
    page.get_by_role("link", name="1 became worse").click()
    wait_for_grid(page, 1)
    assert keys_shown(page) == [samples[2].key]
    expect(page.locator("#grid .open span")).to_contain_text("change -0.65")
    page.go_back()
    page.get_by_role("link", name="1 better").click()
    until(page, "new URLSearchParams(location.search).get('desc') === '1'")
    wait_for_grid(page, 1)
    assert keys_shown(page) == [samples[4].key]


def test_late_answers_change_nothing(watch: Callable[..., Watched], samples: list[Sample]) -> None:
    """Answers that are held back until the page shows something else."""
    page = watch().open()
    wait_for_grid(page, len(samples))
    held: list[Any] = []

    def hold(pattern: str, act: Callable[[], None]) -> None:
        page.route(pattern, lambda route: held.append(route))
        act()
        while not held:
            page.wait_for_timeout(20)

    def release(pattern: str) -> None:
        with page.expect_response(pattern):
            held.pop().continue_()
        page.unroute(pattern)
        page.wait_for_load_state("networkidle")

    hold("**/api/samples?q=*", lambda: page.get_by_label("Search").fill(samples[3].key))
    page.get_by_role("button", name="Reset").click()
    wait_for_grid(page, len(samples))
    release("**/api/samples?q=*")
    wait_for_grid(page, len(samples))
    hold("**/api/samples/1", page.locator("#grid .open").nth(1).click)
    page.get_by_role("link", name="Classes").click()
    expect(page.locator("main caption").first).to_contain_text("Pixels and images")
    release("**/api/samples/1")
    expect(page.locator("#detail")).to_be_hidden()
    hold("**/api/evaluations/0", page.get_by_role("link", name="Evaluation").click)
    page.get_by_role("link", name="Left out").click()
    expect(page.locator("main .empty")).to_contain_text("No image was left out")
    release("**/api/evaluations/0")
    expect(page.locator("main table")).to_have_count(0)


def test_another_server_at_the_same_address_shows_its_own_pictures(
    browser: Browser, golden: Any
) -> None:
    context = browser.new_context()
    page = context.new_page()
    port = 0
    for split in ("train", "val"):
        server = open_view([str(golden.shards(split))], port=port)
        port = int(server.address.rstrip("/").rpartition(":")[2])
        server.start()
        page.goto(f"{server.address}?sample=0")
        shards = ShardSet([str(golden.shards(split))])
        expect(page.locator("#detail h2")).to_contain_text(shards.row(0).key)
        image = shards.read(0).image
        places = [(y, x) for y in (5, 20) for x in (5, 20, 30)]
        seen = [pixel(page, "image", x, y) for y, x in places]
        wanted = [image[place] for place in places]
        assert np.abs(np.subtract(seen, wanted, dtype=float)).mean() < 16
        server.stop()
    context.close()


def test_a_suspicious_label_opens_its_place(
    watch: Callable[..., Watched], samples: list[Sample]
) -> None:
    page = watch().open("?tab=labels")
    cells = page.locator("#grid .open")
    expect(cells).to_have_count(2)
    expect(cells.first).to_contain_text("0.75 missing object")
    until(page, "[...document.querySelectorAll('#grid canvas')].every(c => c.width)")
    assert min(painted(page, "#grid canvas")) > 1
    page.get_by_label("Kind").select_option("wrong class")
    expect(cells).to_have_count(1)
    cells.first.click()
    expect(page.locator("#detail h2")).to_contain_text(samples[2].key)
    scale = page.locator(".panel canvas").first.evaluate(
        "canvas => new DOMMatrix(canvas.style.transform).a"
    )
    assert scale > 10  # the place is 3 pixels wide


def test_a_run_is_shown_while_it_trains(watch: Callable[..., Watched], run: Path) -> None:
    page = watch().open("?tab=runs")
    row = page.get_by_role("region", name="Runs", exact=True).locator("tbody tr")
    expect(row).to_contain_text("0.2000")
    expect(page.locator(".chart .scatterlayer").first).to_be_attached()
    expect(page.get_by_label("Class")).to_have_value("dog")
    picture = page.get_by_role("img", name="one at step 5: image, ground truth and prediction")
    assert picture.evaluate("image => image.naturalWidth") == 60
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 77, "loss": 0.0625}\n')
    expect(row).to_contain_text("77")
    expect(row).to_contain_text("0.0625")


def test_picked_samples_are_copied_and_saved(
    watch: Callable[..., Watched], samples: list[Sample], shards: Path, tmp_path: Path
) -> None:
    watched = watch(permissions=["clipboard-read", "clipboard-write"])
    page = watched.open()
    wait_for_grid(page, len(samples))
    for i in (3, 1):
        page.get_by_label(f"Pick {samples[i].key}").check()
    page.get_by_role("button", name="Copy keys").click()
    expect(page.locator("#status")).to_contain_text("2 keys are in the clipboard")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.split() == [samples[1].key, samples[3].key]
    with page.expect_download() as download:
        page.get_by_role("button", name="Save list").click()
    saved = Path(download.value.path()).read_text()
    assert saved.split() == [f"{shards}/{samples[i].key}" for i in (1, 3)]


def test_a_damaged_sample_and_missing_parts_are_messages(
    watch: Callable[..., Watched], browser: Browser, shards: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "shards"
    shutil.copytree(shards, broken)
    opened = ShardSet([str(broken)])
    file = broken / opened.manifests[0].shards[0].name
    content = bytearray(file.read_bytes())
    content[opened.row(0).offsets[0] + 9] ^= 255
    file.write_bytes(content)
    (broken / "quarantine.jsonl").write_text(
        '{"file_name": "<b>bold</b>.png", "reason": "size-mismatch", "detail": "1 x 1"}\n'
    )
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (30, 20), "red").save(images / "other.png")
    server = open_view([str(broken), str(images)])
    server.start()
    try:
        context = browser.new_context()
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.goto(server.address)
        wrong = page.locator(".cell .wrong")
        expect(wrong).to_have_count(1)
        expect(wrong).to_contain_text("differs from the index")
        until(page, "[...document.querySelectorAll('#grid canvas')].slice(1).every(c => c.width)")
        page.goto(f"{server.address}?tab=evaluation")
        expect(page.locator(".empty")).to_contain_text("cocoseg eval --checkpoint")
        page.goto(f"{server.address}?tab=left-out")
        expect(page.locator("tbody")).to_contain_text("<b>bold</b>.png")
        expect(page.locator("tbody .small")).to_contain_text("in no folder that is shown")
        assert page.locator("tbody b").count() == 0
        context.close()
    finally:
        server.stop()


def test_an_exported_page_needs_no_server(
    watch: Callable[..., Watched],
    shards: Path,
    evaluation: Path,
    samples: list[Sample],
    tmp_path: Path,
) -> None:
    chosen = tmp_path / "samples.txt"
    chosen.write_text(f"{shards}/{samples[4].key}\n{samples[2].key}\n")
    file = tmp_path / "page.html"
    told = export_page(open_sources([str(shards), str(evaluation)]), str(file), str(chosen))
    assert (told.samples, told.size) == (2, file.stat().st_size)
    page = watch(f"file://{file}").open()
    wait_for_grid(page, 2)
    assert keys_shown(page) == [samples[4].key, samples[2].key]
    until(page, "[...document.querySelectorAll('#grid canvas')].every(c => c.width)")
    page.locator("#grid .open").first.click()
    expect(page.locator("#detail h2")).to_contain_text(samples[4].key)
    mask = samples[4].mask
    rows, columns = np.nonzero((mask != 0) & (mask != IGNORE))
    y, x = int(rows[0]), int(columns[0])
    assert pixel(page, "ground truth", x, y) != pixel(page, "image", x, y)
    page.keyboard.press("ArrowRight")
    expect(page.locator("#detail h2")).to_contain_text(samples[2].key)
    page.keyboard.press("Escape")
    page.keyboard.press("o")
    found = Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize("width", [360, 3840])
@pytest.mark.parametrize("tab", PAGES)
def test_pages_fit_phones_and_large_screens(
    watch: Callable[..., Watched], tab: str, width: int
) -> None:
    page = watch(viewport={"width": width, "height": 800}).open(f"?tab={tab}")
    expect(page.locator("main")).not_to_be_empty()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_notebook_shows_it_in_a_frame(
    browser: Browser, server: ViewServer, samples: list[Sample]
) -> None:
    class Notebook(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = server._repr_html_().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Notebook) as notebook:
        threading.Thread(target=notebook.serve_forever, daemon=True).start()
        context = browser.new_context()
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{notebook.server_address[1]}/")
        frame = page.frame_locator("iframe")
        expect(frame.locator("#grid .open")).to_have_count(len(samples))
        context.close()
        notebook.shutdown()
