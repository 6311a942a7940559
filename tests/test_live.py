"The live page in real browsers: its numbers against PyTorch, its experiments, what it says when something is missing. `make web` builds it."
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_browser import PATIENCE, browser, playwright, started, unavailable, watched_page  # noqa: F401, two are fixtures

from farmer import Student
from farmer.analysis import Subject
from farmer.export import export_pretrained, live_server
from farmer.pretrained import embedded_models

try:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError:
    webdriver = None

ROOT = Path(__file__).parent.parent
WEB, LIVE_PAGE = ROOT / "web", ROOT / "farmer" / "page" / "live"
EXPERIMENTS = ("story", "variance", "swap", "traverse", "bits", "draw", "sample")
TOLERANCE = 1e-3  # of the root mean square of what is expected

# Everything that a model computes, for some of its held-out images: in the browser, by the page's own code.
COMPUTE = """async name => {
  const model = await farmer.open(name), labels = model.facts.labels.slice(0, 4), count = labels.length;
  const images = new Float32Array(count * model.size);
  labels.forEach((_, i) => images.set(model.images[i], i * model.size));
  const encoded = await model.encode(images, count), mixtures = await model.mixtures(encoded.informative, labels);
  const join = (each, name) => each.flatMap(mixture => Array.from(mixture[name]));
  const nats = labels.map((_, i) => model.tokenLogProb(encoded, mixtures, i)).map(
    (parts, i) => encoded.logdet[i] + parts.informative.reduce((a, b) => a + b) + parts.redundant.reduce((a, b) => a + b));
  const found = {informative: encoded.informative, redundant: encoded.redundant, logdet: encoded.logdet, exact: await model.decode(encoded, true)};
  if (model.has("student")) found.student = await model.decode(encoded);
  for (const part of ["logits", "mean", "logScale"]) { found[part] = join(mixtures.own, part); found["shared " + part] = join(mixtures.shared, part); }
  found["log p"] = nats;
  return Object.fromEntries(Object.entries(found).map(([key, values]) => [key, Array.from(values)]));
}"""

# The pictures of a section, as text that changes when any of them does.
LOOK = """id => Array.from(document.querySelectorAll(`#${id} canvas:not(#pad)`), canvas => canvas.toDataURL()).join()
  + Array.from(document.querySelectorAll(`#${id} svg, #${id} .note, #${id} .classes`), each => each.outerHTML).join()"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The built page with all embedded models, served."
    if importlib.util.find_spec("onnx") is None:
        unavailable("onnx is missing: pip install onnx")
    if not (LIVE_PAGE / "index.html").is_file():
        unavailable("the live page is not built: `make web`, which needs Node")
    if max(path.stat().st_mtime for path in (WEB / "index.html", *(WEB / "src").iterdir())) > (LIVE_PAGE / "index.html").stat().st_mtime:
        unavailable("web/ has changed since the live page was built: `make web`")
    folder = tmp_path_factory.mktemp("live")
    shutil.copytree(LIVE_PAGE, folder, dirs_exist_ok=True)
    for name in set(embedded_models()) - {path.name for path in (folder / "models").iterdir()}:
        export_pretrained(name, folder / "models" / name, count=4)
    with live_server(0, folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}/"
        server.shutdown()


@contextlib.contextmanager
def opened(browser, address: str, width: int = 1400, theme: str = "light"):  # noqa: F811
    "The page; at the end, nothing has gone wrong on it, and no other host was asked."
    with watched_page(browser) as (page, complaints):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=theme)
        page.goto(address)
        yield page, complaints
        assert not [each for each in complaints if "_ABORTED" not in each]  # which is what a page that a test leaves says of its downloads


def ready(page, *sections: str) -> None:
    "Wait until sections show what the controls say."
    for section in sections:
        page.locator(f"#{section}").scroll_into_view_if_needed()
        page.locator(f'#{section}[data-state="ready"]').wait_for()


def put(page, section: str, key: str, value: object) -> tuple[str, str]:
    "Set a control as a reader does; what the section shows before and after."
    before = page.evaluate(LOOK, section)
    control = page.locator(f'[data-key="{key}"]').last
    if control.evaluate("each => each.tagName") == "SELECT":
        control.select_option(str(value))
    else:
        control.fill(str(value))
    ready(page, section)
    return before, page.evaluate(LOOK, section)


@pytest.fixture(scope="module", params=["chromium", pytest.param("firefox", marks=pytest.mark.slow)])
def page(playwright, site, request):  # noqa: F811
    with started(playwright, request.param) as running, opened(running, site) as (page, _):
        yield page


@pytest.mark.parametrize("name", embedded_models())
def test_numbers_are_those_of_pytorch(page, name, capsys):
    errors = errors_of(page.evaluate(COMPUTE, name), name)
    with capsys.disabled():
        print(f"\n{name}:", ", ".join(f"{key} {error:.0e}" for key, error in errors.items()), end=" ")
    assert max(errors.values()) <= TOLERANCE


def errors_of(found: dict[str, list[float]], name: str) -> dict[str, float]:
    "Largest difference from what PyTorch computes, over the root mean square of that."
    found = {key: torch.tensor(values) for key, values in found.items()}
    count = len(found["logdet"])
    subject = Subject.load(name, count=count)
    model, images, labels = subject.model, subject.images, subject.labels
    with torch.no_grad():
        latents = model.encode(images)
        own, shared = model.prior.mixtures(latents.informative, labels)
        expected = {"informative": latents.informative, "redundant": latents.redundant, "logdet": latents.logdet, "exact": model.decode(latents)}
        if "student" in found:
            expected["student"] = model.decode(latents, inverse=Student.from_pretrained(name))
        expected["log p"] = model.log_prob(images, labels)
    for prefix, mixture in (("", own), ("shared ", shared)):
        parts = {"logits": mixture.logits, "mean": mixture.component_mean, "logScale": mixture.component_log_scale}
        expected |= {prefix + part: values.detach() for part, values in parts.items()}
    assert found.keys() == expected.keys()
    return {key: ((found[key] - expected[key].flatten()).abs().max() / expected[key].square().mean().sqrt()).item() for key in expected}


def test_every_control_moves_its_section_and_says_so_in_the_address(page, site):
    page.goto(site)
    ready(page, "story")
    steps = [
        ("story", "image", 4), ("story", "token", 9), ("story", "block", 3), ("story", "channel", 20), ("story", "exact", 1), ("variance", "variance", 4),
        ("variance", "seed", 3), ("swap", "donor", 9), ("swap", "swapped", 20), ("traverse", "offset", -2), ("bits", "label", 2), ("sample", "step", 3),
        ("sample", "way", "resampling"), ("sample", "scale", 4), ("sample", "wanted", 5), ("story", "model", "digits"),
    ]  # fmt: skip
    for section, key, value in steps:
        ready(page, section)
        before, after = put(page, section, key, value)
        assert before != after, key
        assert f"{key}={value}" in page.url, key
        assert not page.locator(".message:visible").count(), page.locator(".message:visible").all_inner_texts()


def test_the_address_leads_to_the_same_moment(page, site):
    "Every picture, sampled ones too, is the same when it is opened again."
    shown = []
    for _ in range(2):
        page.goto("about:blank")
        page.goto(f"{site}#image=6&variance=2.5&seed=11&donor=9&swapped=24&token=12&channel=18&label=3&wanted=2&scale=3&step=64")
        ready(page, *EXPERIMENTS)
        shown.append([page.evaluate(LOOK, section) for section in EXPERIMENTS])
    assert shown[0] == shown[1] and all(shown[0])


def test_every_stage_can_be_touched(page, site):
    "Pictures answer with the token that was touched, bars with their channel, small pictures with their block, curves with a pull."
    page.goto(site)
    ready(page, "story")
    page.locator("#stage-tokens canvas").click(position={"x": 3, "y": 3})
    page.wait_for_function("() => location.hash.includes('token=0')")
    page.locator("#stage-blocks canvas").nth(4).click()
    page.wait_for_function("() => location.hash.includes('block=4')")
    ready(page, "story")
    page.locator("#stage-latents rect").nth(40).click(force=True)
    page.wait_for_function("() => location.hash.includes('channel=20')")
    ready(page, "story")
    page.locator("#stage-mixture svg").click(position={"x": 5, "y": 40})
    page.wait_for_function("() => location.hash.includes('offset=-')")
    page.locator("#thumbs canvas").nth(3).click()
    page.wait_for_function("() => location.hash.includes('image=3')")
    ready(page, "story", "traverse")


@pytest.mark.parametrize("hash", ["#image=2.7&token=999&channel=-3&step=1e5", "#model=nobody&variance=99", "#label=77&way=none&wanted=12"])
def test_addresses_that_make_no_sense(page, site, hash):
    "Show what is nearest to them."
    page.goto("about:blank")
    page.goto(site + hash)
    ready(page, *EXPERIMENTS)
    assert not page.locator(".message:visible").count(), page.locator(".message:visible").all_inner_texts()


def test_drawing_by_mouse_and_keyboard(page, site):
    page.goto("about:blank")
    page.goto(f"{site}#model=digits")
    ready(page, *EXPERIMENTS)
    ready(page, "draw")
    pad = page.locator("#pad")
    box = pad.bounding_box()
    pad.hover(position={"x": 0.5 * box["width"], "y": 0.15 * box["height"]})
    page.mouse.down()
    box = pad.bounding_box()  # where it is now: the sections above may have grown
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.85 * box["height"], steps=8)
    page.mouse.up()
    ready(page, "draw")
    page.locator("#draw-classes span").first.wait_for()
    assert "most like a 1" in page.locator("#draw-note").inner_text()
    by_mouse = page.evaluate(LOOK, "draw")
    pad.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "Space"):
        pad.press(key)
    page.wait_for_function("before => (" + LOOK + ")('draw') !== before", arg=by_mouse)
    page.get_by_role("button", name="Clear").press("Enter")
    page.locator("#draw-note").get_by_text("Nothing drawn yet").wait_for()
    assert "drawn" not in page.url


def test_uploads(page, site, tmp_path):
    "A picture of the reader's goes through the whole model; a file that is none is refused in a sentence, and all goes on."
    page.goto(site)
    ready(page, "story")
    Image.new("RGBA", (300, 200), (200, 30, 30, 255)).save(tmp_path / "red.png")
    (tmp_path / "text.png").write_text("this is not a picture")
    before = page.evaluate(LOOK, "story")
    page.locator("#upload").set_input_files(tmp_path / "text.png")
    page.locator("#status").get_by_text("is not a picture that this browser can read").wait_for()
    assert page.evaluate(LOOK, "story") == before
    page.locator("#upload").set_input_files(tmp_path / "red.png")
    page.locator("#stage-image").get_by_text("your own picture").wait_for()
    ready(page, "story")
    red = page.evaluate("() => { const m = farmer.app; return m.model().then(model => Array.from(m.picture(model, model.images.length).image)) }")
    expected = torch.tensor([200, 30, 30]).float().div(127.5).sub(1).repeat_interleave(32 * 32)
    torch.testing.assert_close(torch.tensor(red), expected, atol=0.02, rtol=0)


def test_without_simd(browser, site):  # noqa: F811
    "A sentence in every section that needs the model; no uncaught error, and the texts are there."
    with watched_page(browser) as (page, complaints):
        page.add_init_script("WebAssembly.validate = () => false")
        page.goto(site)
        page.locator("#story .message").get_by_text("no WebAssembly SIMD").wait_for()
        assert page.get_by_role("heading", name="Variance").is_visible()
        page.locator("#variance summary").click()
        assert page.locator("#variance details p").is_visible()
        assert not complaints


def test_a_missing_file(browser, site):  # noqa: F811
    "The section that needs it says which; the others go on, and another model works."
    with watched_page(browser) as (page, _):
        page.route("**/models/photos/student.bin", lambda route: route.fulfill(status=404))
        page.goto(site)
        page.locator("#story .message").get_by_text("photos/student.bin is missing").wait_for()
        assert page.locator("#stage-blocks figure").count() == 7
        page.locator("#bits").scroll_into_view_if_needed()
        page.locator('#bits[data-state="ready"] .message').wait_for(state="hidden")
        page.locator('[data-key="model"]').select_option("digits")
        page.locator("#story").scroll_into_view_if_needed()
        page.locator("#stage-back figure").wait_for()
        page.locator("#story .message").wait_for(state="hidden")


@contextlib.contextmanager
def webkit():
    "Safari's engine, as WebKitGTK brings it, on a screen of its own."
    mini, driver = next(iter(sorted(Path("/usr/lib").glob("*/webkit2gtk-*/MiniBrowser"))), None), shutil.which("WebKitWebDriver")
    if webdriver is None or mini is None or driver is None or shutil.which("Xvfb") is None:
        unavailable("no WebKit: `pip install selenium` and `apt-get install webkit2gtk-driver xvfb`")
    reading, writing = os.pipe()
    with subprocess.Popen(["Xvfb", "-displayfd", str(writing)], pass_fds=[writing], stderr=subprocess.DEVNULL) as screen:
        display = os.read(reading, 16).decode().strip()
        service = webdriver.webkitgtk.service.Service(executable_path=driver, env={**os.environ, "DISPLAY": f":{display}"})
        options = webdriver.WebKitGTKOptions()
        options.binary_location = str(mini)
        options.add_argument("--automation")
        with contextlib.ExitStack() as at_the_end:
            at_the_end.callback(screen.terminate)
            running = webdriver.WebKitGTK(options=options, service=service)
            at_the_end.callback(running.quit)
            running.set_script_timeout(PATIENCE)
            yield running


@pytest.mark.slow
def test_in_webkit(site):
    "The numbers, every section, and what the keyboard moves."
    with webkit() as page:
        page.get(site)
        for name in ("photos", "digits"):
            found = page.execute_async_script(f"const [name, done] = arguments; ({COMPUTE})(name).then(done)", name)
            assert max(errors_of(found, name).values()) <= TOLERANCE
        waiting = WebDriverWait(page, PATIENCE)

        def look(section: str) -> str:
            page.execute_script("document.getElementById(arguments[0]).scrollIntoView()", section)
            waiting.until(lambda page: page.find_elements(By.CSS_SELECTOR, f'#{section}[data-state="ready"]'), f"{section} is not ready")
            return page.execute_script(f"return ({LOOK})(arguments[0])", section)

        assert all(map(look, EXPERIMENTS))
        for section, key in (("story", "image"), ("variance", "variance"), ("swap", "donor"), ("traverse", "offset"), ("sample", "step")):
            before = look(section)
            page.find_element(By.CSS_SELECTOR, f'[data-key="{key}"]').send_keys(Keys.ARROW_RIGHT)
            waiting.until(lambda page: f"{key}=" in page.current_url and look(section) != before, f"{key} moves nothing")
        assert not [each.text for each in page.find_elements(By.CSS_SELECTOR, ".message") if each.text]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_accessibility(browser, site, width, theme):  # noqa: F811
    "No violation of axe-core, nothing cut off, with all sections drawn and all answers unfolded."
    axe = WEB / "node_modules" / "axe-core" / "axe.min.js"
    if not axe.is_file():
        unavailable("axe-core is missing: `npm ci` in web/")
    with opened(browser, f"{site}#step=5", width, theme) as (page, _):
        ready(page, *EXPERIMENTS)
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        page.evaluate(axe.read_text())
        violations = page.evaluate("axe.run().then(({violations}) => violations)")
        assert not [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in violations]
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_recorded_guidance_is_what_the_library_computes():
    "What the tests of the TypeScript compare with."
    spec = importlib.util.spec_from_file_location("record_guidance", WEB / "record_guidance.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    compare_json(json.loads(module.FILE.read_text()), json.loads(json.dumps(module.cases())))


def compare_json(first: object, second: object) -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        first, second = list(first.values()), list(second.values())
    if isinstance(first, list):
        assert len(first) == len(second)
        for pair in zip(first, second):
            compare_json(*pair)
    else:
        assert first == pytest.approx(second, rel=1e-4, abs=1e-4)


def test_mathematics_of_the_page():
    "Vitest: mixtures, guidance, chance, addresses, drawings."
    if shutil.which("npx") is None or not (WEB / "node_modules" / "vitest").is_dir():
        unavailable("Node or the page's packages are missing: install Node 20 or newer, then `npm ci` in web/")
    done = subprocess.run(["npx", "vitest", "run"], cwd=WEB, capture_output=True, text=True, timeout=4 * PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_lock_file_records_no_addresses():
    packages = json.loads((WEB / "package-lock.json").read_text())["packages"]
    assert packages and not [name for name, package in packages.items() if "resolved" in package]
