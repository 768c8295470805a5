"""The page in a real browser: its masks beside Python's, every source of images, the keyboard, a phone, mistakes."""

import base64
import gzip
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import onnxruntime
import pytest
from browsers import chromium, errors_of
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, BrowserContext, Locator, Route, expect

import distill
from distill.data.sample import SAMPLE_CLASSES, scene
from distill.errors import DistillError
from distill.training.evaluation import predict_logits
from studies.page import CACHE, MOST_BYTES, NETWORKS, build, fetch_runtime, folder_size

PATIENCE = 60_000  # milliseconds
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")  # a camera that shows a test card
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


class Site:
    """A server as plain as any static host, that remembers what was asked of it and counts the bytes it sent."""

    def __init__(self, folder: Path) -> None:
        site, self.paths, self.bytes = self, [], 0

        class Handler(SimpleHTTPRequestHandler):
            def copyfile(self, source, outputfile) -> None:  # type: ignore[no-untyped-def]
                content = source.read()
                site.bytes += len(content)
                outputfile.write(content)

            def log_message(self, *_: object) -> None:
                site.paths.append(self.path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, built anew; without the network only where onnxruntime-web was fetched before."""
    try:
        fetch_runtime(CACHE)
    except DistillError as error:
        pytest.fail(str(error)) if os.environ.get("DISTILL_NEEDS_BROWSER") else pytest.skip(str(error))
    return build(tmp_path_factory.mktemp("built") / "page")


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Site]:
    site = Site(folder)
    yield site
    site.server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(*CAMERA) as browser:
        yield browser


@pytest.fixture(scope="module")
def answers(folder: Path) -> Callable[[str, np.ndarray], np.ndarray]:
    """The mask of a network, by onnxruntime in Python, of an image (H, W, 3), from the file that the page loads."""
    files = {network["name"]: network["file"] for network in json.loads((folder / "page.json").read_text())["networks"]}
    sessions = {
        name: onnxruntime.InferenceSession(gzip.decompress((folder / file).read_bytes()))
        for name, file in files.items()
    }
    return lambda name, image: sessions[name].run(None, {"image": image.transpose(2, 0, 1)[None]})[0][0].argmax(0)


class Visit:
    """One visit to the page, and everything that went out from it or went wrong in it."""

    def __init__(self, context: BrowserContext, site: Site, view: str = "") -> None:
        self.requests: list[str] = []
        before = site.bytes  # of earlier visits
        context.on("request", lambda request: self.requests.append(request.url))
        self.site, self.context, self.page = site, context, context.new_page()
        self.errors = errors_of(self.page)
        self.page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        self.page.goto(site.address + view)
        expect(self.page.locator("main[data-shown]")).to_be_visible()
        self.bytes = site.bytes - before

    def after(self, act: Callable[[], object]) -> None:
        """Do something that shows another image, and wait until it is shown."""
        main = self.page.locator("main")
        before = main.get_attribute("data-shown")
        act()
        expect(main).to_have_attribute("aria-busy", "false")
        assert main.get_attribute("data-shown") != before, "no other image was shown"

    def picture(self, beginning: str) -> np.ndarray:
        """What a canvas shows, (H, W, 3), by the beginning of its alternative text."""
        canvas = self.page.locator(f'#figures canvas[aria-label^="{beginning}"]')
        address = canvas.evaluate("canvas => canvas.toDataURL()")  # as PNG
        return np.array(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB"))

    def mask(self, name: str, palette: np.ndarray) -> np.ndarray:
        """The classes that a mask's colours stand for, (H, W)."""
        same = (self.picture(f"Mask, {name}:")[:, :, None] == palette).all(-1)
        assert same.any(-1).all(), "a colour of no class"
        return same.argmax(-1)

    def sides(self) -> tuple[int, int]:
        """Height and width of the image that the networks saw."""
        height, width, _ = self.picture("The image").shape
        return height, width

    def choose(self, path: Path) -> None:
        """Choose a photograph, be it the one that was chosen before."""
        self.page.set_input_files("#file", [])
        self.page.set_input_files("#file", path)

    def source(self, name: str) -> Locator:
        return self.page.locator(f"[name=source][value={name}]")

    def to(self, source: str) -> None:
        """Take images from another source."""
        self.source(source).check(force=True)
        expect(self.page.locator("main")).to_have_attribute("aria-busy", "false")


@pytest.fixture(scope="module")
def visit(browser: Browser, site: Site) -> Iterator[Visit]:
    """On a desktop; the tests share it, and each begins with a source of images of its own choice."""
    context = browser.new_context(viewport=DESKTOP)
    yield Visit(context, site)
    context.close()


@pytest.fixture(scope="module")
def palette(folder: Path) -> np.ndarray:
    return np.array(json.loads((folder / "page.json").read_text())["palette"])


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 900 x 600 pixels, with shapes on uneven ground."""
    rng = np.random.default_rng(5)
    ground = Image.fromarray(rng.integers(90, 160, (6, 9, 3), dtype=np.uint8)).resize(
        (900, 600), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(ground)
    draw.regular_polygon((300, 300, 170), 3, fill=(40, 160, 60))
    draw.ellipse((550, 150, 800, 420), fill=(210, 170, 40))
    path = tmp_path_factory.mktemp("photograph") / "shapes.jpg"
    ground.save(path, quality=95)
    return path


# ------------------------------------------------------------------------------------------------ what it loads


def test_the_folder_and_what_is_loaded_of_it_have_at_most_15_megabytes(visit: Visit, folder: Path) -> None:
    assert folder_size(folder) <= MOST_BYTES == 15_000_000
    assert {path.name for path in folder.iterdir()} >= {path.strip("/") for path in visit.site.paths if path != "/"}
    assert 5_000_000 < visit.bytes <= MOST_BYTES


def test_threads_where_the_browser_has_them(visit: Visit) -> None:
    assert visit.page.evaluate("crossOriginIsolated")
    threads = min(visit.page.evaluate("navigator.hardwareConcurrency"), 4)
    expect(visit.page.locator("#engine")).to_contain_text("one thread" if threads == 1 else f"{threads} threads")


# --------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("index", [0, 3, 7])
def test_masks_of_scenes(index: int, visit: Visit, palette: np.ndarray, answers: Callable) -> None:
    visit.to("scene")
    if not visit.page.locator("[name=scene]").nth(index).is_checked():
        visit.after(lambda: visit.page.locator("[name=scene]").nth(index).check(force=True))
    image, labels = scene("test", index)
    assert np.array_equal(visit.picture("The image"), image)
    known = labels != 255
    assert np.array_equal(visit.picture("Its labels")[known], palette[labels[known]])
    for name, load in NETWORKS.items():
        found = visit.mask(name, palette)
        assert (found == answers(name, image)).mean() >= 0.99
        assert (found == distill.predict(load(), image)).mean() >= 0.99
        facts = visit.page.locator("figure", has_text=name).locator(".facts").inner_text()
        assert f" {100 * (found == labels)[known].mean():.1f} % right" in facts
        assert float(facts.split(" ms")[0]) > 0
    assert visit.errors == []


@pytest.mark.parametrize("side", ["64", "192"])
def test_masks_of_a_photograph(
    side: str, visit: Visit, photograph: Path, palette: np.ndarray, answers: Callable
) -> None:
    visit.to("photo")
    visit.after(lambda: visit.choose(photograph))
    if visit.page.locator("#side").input_value() != side:
        visit.after(lambda: visit.page.select_option("#side", side))
    image = visit.picture("The image")
    assert image.shape == (int(side), int(side) * 3 // 2, 3)
    shrunk = np.asarray(Image.open(photograph).resize(image.shape[1::-1], Image.Resampling.BOX), dtype=int)
    assert abs(shrunk - image).mean() < 4, "another picture than the photograph"
    for name in NETWORKS:
        assert (visit.mask(name, palette) == answers(name, image)).mean() >= 0.99
    visit.after(lambda: visit.page.select_option("#side", "64")) if side != "64" else None
    assert visit.errors == []


def test_one_thread_without_a_service_worker(
    browser: Browser, site: Site, palette: np.ndarray, answers: Callable
) -> None:
    context = browser.new_context(viewport=DESKTOP, service_workers="block")
    visit = Visit(context, site, "#scene=5&x=11&y=50&T=8")
    expect(visit.page.locator("#engine")).to_contain_text("one thread")
    image, _ = scene("test", 5)
    assert np.array_equal(visit.picture("The image"), image)
    for name in NETWORKS:
        assert (visit.mask(name, palette) == answers(name, image)).mean() >= 0.99
    # The address chose the pixel and the temperature too.
    expect(visit.page.locator("#sentence")).to_contain_text("Pixel (11, 50)")
    assert visit.page.locator("#temperature-value").inner_text() == "8"
    assert visit.errors == []
    context.close()


# -------------------------------------------------------------------------------------------------- probabilities


def test_probabilities_of_the_clicked_pixel(visit: Visit) -> None:
    visit.to("scene")
    visit.after(lambda: visit.page.locator("[name=scene]").nth(1).check(force=True))
    canvas = visit.page.locator('#figures canvas[aria-label^="Mask, teacher"]')
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 40.5 / 64, "y": box["height"] * 21.5 / 64})
    image, _ = scene("test", 1)
    slider = visit.page.locator("#temperature")
    for steps in (0, 4):
        slider.focus()
        slider.press("Home")
        for _ in range(steps):
            slider.press("ArrowRight")
        temperature = float(visit.page.locator("#temperature-value").inner_text())
        assert temperature == (1, 4)[steps > 0]
        logits = predict_logits(NETWORKS["teacher"](), image)[:, 21, 40]
        expected = (logits / temperature).softmax(0)
        sentence = visit.page.locator("#sentence").inner_text()
        name = SAMPLE_CLASSES[int(expected.argmax())]
        assert sentence.startswith("Pixel (40, 21)")
        assert f"teacher: {name} " in sentence
        assert float(sentence.split(f"teacher: {name} ")[1][:4]) == pytest.approx(float(expected.max()), abs=0.011)
        rows = visit.page.locator("#probabilities tr").all()[1:]
        sums = np.sum([[float(cell) for cell in row.locator("td").all_inner_texts()] for row in rows], axis=0)
        assert np.allclose(sums, 1, atol=0.005)
    assert visit.errors == []


# ------------------------------------------------------------------------------------------ drawing and the keyboard


def test_everything_by_keyboard(visit: Visit, palette: np.ndarray) -> None:
    page, keys = visit.page, visit.page.keyboard
    visit.to("scene")
    page.locator("[name=scene]:checked").focus()
    visit.after(lambda: keys.press("ArrowRight"))
    page.locator("#wipe").focus()
    wiped = page.locator("canvas[aria-roledescription]")
    before = wiped.screenshot()
    keys.press("Home")
    assert wiped.screenshot() != before, "the wipe slider changed nothing"
    wiped.focus()
    place = page.locator("#sentence").inner_text()
    keys.press("ArrowDown")
    assert page.locator("#sentence").inner_text().split(")")[0] != place.split(")")[0]
    # A heart, stamped in the middle of an empty ground: the teacher sees it.
    page.locator("[name=source]:checked").focus()
    visit.after(lambda: keys.press("ArrowRight"))
    assert visit.source("draw").is_checked()
    page.locator("#clear").focus()
    visit.after(lambda: keys.press("Enter"))
    page.locator("#board").focus()
    visit.after(lambda: keys.press("Space"))
    stamped = visit.mask("teacher", palette)
    assert (stamped[26:38, 26:38] == SAMPLE_CLASSES.index("heart")).mean() > 0.9
    page.locator("#undo").focus()
    visit.after(lambda: keys.press("Enter"))
    assert (visit.mask("teacher", palette) == 0).mean() > 0.9
    assert visit.errors == []


def test_a_stroke_asks_for_the_latest_drawing_only_and_begins_on_the_board(visit: Visit) -> None:
    page, mouse = visit.page, visit.page.mouse
    visit.to("draw")
    page.locator("#side").select_option("256")  # so that an answer takes longer than a step of the stroke
    page.locator("#tool").select_option("brush")
    page.evaluate(
        """() => {
            const post = Worker.prototype.postMessage;
            window.waiting = window.most = 0; // requests that are not answered
            Worker.prototype.postMessage = function (request, ...more) {
                if (!window.counts) this.addEventListener("message", () => (window.waiting -= 1));
                window.counts = true;
                window.most = Math.max(window.most, (window.waiting += 1));
                return post.call(this, request, ...more);
            };
        }"""
    )
    board, box = page.locator("#board"), page.locator("#board").bounding_box()
    drawn = board.evaluate("board => board.toDataURL()")
    y = box["y"] + box["height"] / 2
    mouse.move(box["x"] - 10, y)
    mouse.down()
    mouse.move(box["x"] + 20, y, steps=5)
    mouse.up()
    assert board.evaluate("board => board.toDataURL()") == drawn, "a button that was pressed elsewhere paints"
    mouse.move(box["x"] + 20, y)
    mouse.down()
    mouse.move(box["x"] + box["width"] - 20, y, steps=80)
    mouse.up()
    expect(page.locator("main")).to_have_attribute("aria-busy", "false")
    assert board.evaluate("board => board.toDataURL()") != drawn
    # Two, because the page may hear an answer, and ask again, before this test hears of it.
    assert page.evaluate("window.most") <= 2, "older drawings wait before the latest"
    visit.after(lambda: page.locator("#side").select_option("64"))
    assert visit.errors == []


def test_a_brush_paints_where_it_only_touches_and_only_by_the_left_button(visit: Visit) -> None:
    page, board = visit.page, visit.page.locator("#board")
    visit.to("draw")
    page.locator("#tool").select_option("brush")

    def drawn() -> str:
        return board.evaluate("board => board.toDataURL()")

    for act in (lambda: board.click(position={"x": 30, "y": 30}), lambda: board.press("Space")):
        before = drawn()
        visit.after(act)
        assert drawn() != before
    before = drawn()
    board.click(position={"x": 60, "y": 60}, button="right")
    assert drawn() == before
    for _ in range(2):
        visit.after(lambda: page.locator("#undo").click())


def test_every_control_has_a_name_and_every_picture_a_text(visit: Visit) -> None:
    unnamed = visit.page.evaluate(
        """() => [...document.querySelectorAll("input, select, button, canvas, img, progress, video")]
            .filter((e) => !e.closest("[aria-hidden]"))
            .filter((e) => !(e.getAttribute("aria-label") || e.alt || e.labels?.[0]?.textContent.trim()
                || e.labels?.[0]?.querySelector("[alt]") || (e.matches("button") && e.textContent.trim())))
            .map((e) => e.outerHTML)"""
    )
    assert unnamed == []


# ---------------------------------------------------------------------------------------------------- the camera


def test_the_camera(visit: Visit) -> None:
    visit.to("camera")
    main = visit.page.locator("main")
    before = main.get_attribute("data-shown")
    visit.page.locator("#camera").click()
    expect(main).not_to_have_attribute("data-shown", before)
    assert visit.sides()[0] == 64
    before = main.get_attribute("data-shown")
    expect(main).not_to_have_attribute("data-shown", before)  # the next picture
    visit.to("scene")
    assert visit.page.locator("#camera").inner_text() == "Start the camera"
    assert not visit.page.evaluate("document.getElementById('video').srcObject")
    assert visit.errors == []


def test_a_camera_that_is_unplugged(visit: Visit) -> None:
    visit.to("camera")
    button, main = visit.page.locator("#camera"), visit.page.locator("main")
    before = main.get_attribute("data-shown")
    button.focus()
    visit.page.keyboard.press("Enter")
    expect(main).not_to_have_attribute("data-shown", before)
    assert button.evaluate("button => button === document.activeElement"), "the focus was lost"
    expect(visit.page.locator("#sentence")).to_have_attribute("aria-live", "off")
    visit.page.evaluate(
        """() => {
            const [track] = document.getElementById("video").srcObject.getVideoTracks();
            track.stop();
            track.dispatchEvent(new Event("ended"));
        }"""
    )
    expect(visit.page.locator("#problem")).to_contain_text("The camera gives no more pictures")
    assert button.inner_text() == "Start the camera"
    visit.to("scene")
    assert visit.errors == []


def test_a_camera_that_is_refused_or_missing(visit: Visit) -> None:
    for error, words in {"NotAllowedError": "allow it", "NotFoundError": "No camera was found"}.items():
        visit.page.evaluate(
            f"() => {{ navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{error}') }} }}"
        )
        visit.to("camera")
        visit.page.locator("#camera").click()
        expect(visit.page.locator("#problem")).to_contain_text(words)
    visit.to("scene")
    expect(visit.page.locator("#problem")).to_be_hidden()


# ------------------------------------------------------------------------------------------------------ mistakes


def _refused(visit: Visit, path: Path, *words: str) -> None:
    """One sentence that names the file; what was shown before stays."""
    before = visit.picture("The image")
    visit.choose(path)
    problem = visit.page.locator("#problem")
    expect(problem).to_contain_text(path.name)
    sentence = problem.inner_text()
    assert all(word in sentence for word in words), sentence
    assert len(sentence.splitlines()) == 1 and sentence.endswith(".")
    assert np.array_equal(visit.picture("The image"), before)
    assert visit.errors == []


def test_files_that_are_no_images(visit: Visit, tmp_path: Path) -> None:
    visit.to("photo")
    for name, content in {"notes.txt": b"no image", "empty.png": b"", "cut.png": b"\x89PNG\r\n\x1a\n"}.items():
        (tmp_path / name).write_bytes(content)
        _refused(visit, tmp_path / name, "no image", "PNG, JPEG or WebP")


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_photograph_that_is_cut_off(kind: str, visit: Visit, photograph: Path, tmp_path: Path) -> None:
    """A browser shows as much of it as there is, and the rest white."""
    visit.to("photo")
    whole = io.BytesIO()
    Image.open(photograph).save(whole, "JPEG" if kind == "jpg" else "PNG")
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 3])
    _refused(visit, path, "damaged or cut off")


def test_images_of_impossible_sizes(visit: Visit, tmp_path: Path) -> None:
    visit.to("photo")
    for name, size, word in (("huge.png", (12000, 9000), "64 million"), ("strip.png", (2000, 40), "4 times")):
        Image.new("1", size).save(tmp_path / name)
        _refused(visit, tmp_path / name, f"{size[0]} × {size[1]}", word)


def test_a_large_photograph_is_shrunk_and_a_tiny_one_enlarged(visit: Visit, tmp_path: Path) -> None:
    visit.to("photo")
    for name, size, sides in (("large.jpg", (6000, 4000), (64, 96)), ("tiny.png", (3, 2), (32, 48))):
        Image.new("RGB", size, (120, 130, 140)).save(tmp_path / name)
        visit.after(lambda name=name: visit.choose(tmp_path / name))
        assert visit.sides() == sides
    expect(visit.page.locator("#problem")).to_be_hidden()


def test_a_slow_scene_does_not_take_the_place_of_a_newer_choice(browser: Browser, site: Site) -> None:
    context = browser.new_context(viewport=DESKTOP, service_workers="block")
    visit = Visit(context, site)
    scenes = visit.page.locator("[name=scene]")
    visit.after(lambda: scenes.nth(2).check(force=True))
    visit.after(lambda: scenes.nth(0).check(force=True))
    labels = json.loads(visit.page.evaluate("fetch('page.json').then((r) => r.text())"))["scenes"][5]["labels"]

    def late(route: Route) -> None:
        visit.page.wait_for_timeout(1500)
        route.continue_()

    context.route(f"**/{labels}", late)
    scenes.nth(5).check(force=True)
    scenes.nth(2).check(force=True)
    visit.page.wait_for_timeout(3000)
    expect(visit.page.locator("main")).to_have_attribute("aria-busy", "false")
    assert scenes.nth(2).is_checked() and np.array_equal(visit.picture("The image"), scene("test", 2)[0])
    context.close()


def test_without_its_worker_the_page_says_so(browser: Browser, site: Site) -> None:
    context = browser.new_context(viewport=DESKTOP, service_workers="block")
    context.route("**/worker.js", lambda route: route.fulfill(status=404, body=""))
    page = context.new_page()
    page.goto(site.address)
    expect(page.locator("#problem")).to_contain_text("worker.js", timeout=PATIENCE)
    context.close()


# ---------------------------------------------------------------------------------------- phones, and staying here


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(scheme: str, browser: Browser, site: Site, photograph: Path) -> None:
    context = browser.new_context(viewport=PHONE, color_scheme=scheme, has_touch=True, service_workers="block")
    visit = Visit(context, site)
    for source in ("scene", "draw", "photo", "camera"):
        visit.to(source)
        wide = visit.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{source}: {wide} pixels to scroll sideways"
    dark = visit.page.evaluate("getComputedStyle(document.body).backgroundColor").startswith("rgb(20,")
    assert dark == (scheme == "dark")
    # Loaded once, it needs no network.
    context.set_offline(True)
    visit.to("photo")
    visit.after(lambda: visit.choose(photograph))
    assert visit.errors == []
    context.close()


def test_nothing_left_the_machine(visit: Visit) -> None:
    """After all tests of that visit: its requests went to the page's host, and the browser lets none go elsewhere."""
    hosts = {urlsplit(url).netloc for url in visit.requests if not url.startswith(("blob:", "data:"))}
    assert hosts == {urlsplit(visit.site.address).netloc}
    other = Site(Path(__file__).parent)
    for send in (
        f"fetch('{other.address}')",
        f"fetch('{other.address}', {{method: 'POST', mode: 'no-cors', body: 'x'}})",
    ):
        assert visit.page.evaluate(f"{send}.then(() => 'sent', () => 'refused')") == "refused"
    inside = f"import('{other.address}x.js').then(() => 'sent', () => 'refused')"
    assert visit.page.evaluate(inside) == "refused"
    assert other.paths == []
    other.server.shutdown()
