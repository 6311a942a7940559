"The explorer's widgets in a real browser, moved with the keyboard: on the page of `farmer explore` and in JupyterLab."
import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from helpers import farmer_process, free_port
from PIL import Image

from farmer import Farmer
from farmer.analysis import DEFAULT_MODEL, read_picture
from farmer.explorer import PANELS, _picture

try:
    from playwright.sync_api import expect, sync_playwright
except ImportError:
    sync_playwright = None

NOTEBOOK = Path(__file__).parent.parent / "nbs" / "22_explorer.ipynb"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()
PATIENCE = 90  # seconds for anything to happen; a busy machine may need them

# What to move, one after the other from the start of a panel; what the line of code then says; the outputs that change.
# No other output may.
STEPS = {
    "Variance": [
        ("image", "image=4", "strip note"),
        ("variance times", "scale=1.1", "now"),
        ("seed", "seed=1", "now strip"),
    ],
    "Swap": [
        ("image A", "first=4", "swapped tokens note"),
        ("image B", "second=18", "swapped tokens note"),
        ("5", "tokens=(0, 1, 2, 3, 4, 6, 7,", "swapped"),
        ("none", "tokens=()", "swapped"),
        ("9", "tokens=(9,)", "swapped"),
        ("all", "show(first=4, second=18)", "swapped"),
        ("9", "8, 10,", "swapped"),
    ],
    "Traverse": [
        ("image", "image=4", "now sweep ranking note"),
        ("token", "token=6", "now sweep ranking note"),
        ("channel", "channel=1", "now sweep ranking note"),
        ("deviations", "offset=1.75", "now note"),
    ],
    "Bits": [
        ("image", "image=4", "maps note"),
        ("label", "label='none'", "maps note"),
    ],
    "Mixture": [
        ("image", "image=4", "image figure note"),
        ("token", "token=6", "image figure note"),
        ("channel up", "up=2", "figure"),
        ("channel across", "across=1", "figure"),
        ("guidance w", "scale=1.5", "figure note"),
    ],
    "Basis": [
        ("image", "image=4", "rows"),
        ("donor of z^R", "donor=18", "rows"),
        ("variance times", "scale=1.1", "rows"),
    ],
    "Your image": [
        ("canvas", "show()", "seen note nearest latents"),
    ],
    "Recolour": [
        ("image", "image=4", "where made"),
        ("zoom", "zoom=1.1", "where made"),
        ("giver", "giver=18", "made"),
    ],
}

# What every output of a panel shows: the bytes of a picture that the browser could decode; the lines and words of a figure; a text.
# A picture that gives way to the next while it is decoded is decoded anew; one that stays and cannot be decoded is an error.
LOOK = """async (panel, name) => {
  const decode = image => {
    const source = image.src;
    return image.decode().catch(error => { if (image.src === source) throw error; return decode(image); });
  };
  const shown = {};
  for (const each of panel.querySelectorAll(`[class*="farmer-${name}-"]`)) {
    const output = each.className.match(/farmer-[a-z]+-([a-z]+)/)[1];
    if (each.tagName === "IMG") {
      await decode(each);
      const bytes = new Uint8Array(await (await fetch(each.src)).arrayBuffer());
      shown[output] = btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(""));
    } else if (each.querySelector("svg")) {
      const lines = Array.from(each.querySelectorAll("svg g path"), path => path.getAttribute("d") + path.getAttribute("transform"));
      shown[output] = lines.concat(Array.from(each.querySelectorAll("svg text"), text => text.textContent)).join(" ");
    } else shown[output] = each.textContent;
  }
  return shown;
}"""


# --- A panel on a page


class Shown:
    "A panel on a page."

    def __init__(self, page, title: str):
        self.page, self.name = page, PANELS[title].__name__.lower()
        self.panel = page.locator(f".farmer-{self.name}").first
        self.code, self.alert = self.panel.locator("code").last, self.panel.get_by_role("alert")

    def look(self) -> dict[str, str]:
        return self.panel.evaluate(LOOK, self.name)

    def wait(self, condition) -> dict[str, str]:
        "What is shown once the condition on it holds, or at the end of all patience."
        end = time.monotonic() + PATIENCE
        while not condition(shown := self.look()) and time.monotonic() < end:
            self.page.wait_for_timeout(100)
        return shown

    def move(self, control: str) -> None:
        "By one step, with the keyboard."
        labelled = self.panel.locator(".widget-inline-hbox").filter(has=self.page.locator("label").get_by_text(control, exact=True))
        if control == "canvas":
            for key in ("ArrowRight", "ArrowDown", "Space"):
                self.panel.locator("canvas").press(key)
        elif labelled.locator(".noUi-handle").count():
            labelled.locator(".noUi-handle").press("ArrowRight")
        elif labelled.locator("select").count():
            choose_next(labelled.locator("select"))
        else:
            self.panel.get_by_role("button", name=control, exact=True).press("Space")

    def reset(self) -> None:
        self.panel.get_by_role("button", name="reset", exact=True).press("Enter")
        expect(self.code).to_contain_text(".show()")

    def choose_file(self, path: Path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.panel.get_by_role("button", name="choose a file").press("Enter")
        chooser.value.set_files(path)


def choose_next(select) -> None:
    "Opened first: JupyterLab takes the arrows of a list that is closed for its own."
    for key in ("Space", "ArrowDown", "Enter"):
        select.press(key)


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def check_code(line: str, shown: dict[str, str]) -> None:
    "The line for copying gives what is shown, byte for byte."
    imports, _, call = line.partition("; ")
    names: dict[str, object] = {}
    exec(imports, names)
    for name, content in eval(call.replace(").show(", ").render("), names).items():
        if isinstance(content, bytes):
            assert base64.b64decode(shown[name]) == content, name
        elif isinstance(content, str):
            assert shown[name] == content, name


def drive(shown: Shown, title: str) -> None:
    "Every control changes what hangs on it and nothing else; the line of code says so; reset goes back to the start."
    shown.panel.scroll_into_view_if_needed()
    if ".show()" not in shown.code.inner_text():
        shown.reset()
    start = before = shown.wait(lambda now: all(now.values()))
    for control, code, outputs in STEPS[title]:
        shown.move(control)
        expect(shown.code).to_contain_text(code)
        expected = set(outputs.split())
        after = shown.wait(lambda now: changed(before, now) >= expected)
        assert changed(before, after) == expected, control
        before = after
    if title != "Your image":  # a user's picture is no part of the line
        check_code(shown.code.inner_text(), before)
    shown.reset()
    left = changed(start, shown.wait(lambda now: now == start))
    assert not left, f"not reset: {left}"
    expect(shown.alert).to_have_count(0)


def upload(shown: Shown, folder: Path, model: str) -> None:
    "A picture is read; a file that is none is refused, and then the panel still works."
    Image.new("RGB", (40, 30), (200, 30, 30)).save(folder / "red.png")
    Image.new("RGB", (30, 40), (30, 30, 200)).save(folder / "blue.png")
    (folder / "text.png").write_text("this is not a picture")
    shown.reset()
    start = before = shown.wait(lambda now: now["note"].startswith("A held-out image"))
    for name in ("red.png", "blue.png"):
        shown.choose_file(folder / name)
        after = shown.wait(lambda now: changed(before, now) == start.keys())
        config = Farmer.from_pretrained(model).config
        one = read_picture((folder / name).read_bytes(), config.image_shape, config.levels)
        assert changed(before, after) == start.keys()
        assert base64.b64decode(after["seen"]) == _picture(one, titles=["as the model sees it"], width=144)
        expect(shown.alert).to_have_count(0)
        if name == "red.png":
            shown.choose_file(folder / "text.png")
            expect(shown.alert).to_contain_text("not a picture")
            assert not changed(after, shown.look())
        before = after
    shown.move("canvas")
    assert changed(before, shown.wait(lambda now: changed(before, now) == start.keys())) == start.keys()
    shown.reset()
    left = changed(start, shown.wait(lambda now: now == start))
    assert not left, f"not reset: {left}"


# --- Browser and servers


def unavailable(message: str) -> None:
    "No failure on a machine that lacks something, but continuous integration must not lack it."
    (pytest.fail if os.environ.get("CI") else pytest.skip)(message)


@pytest.fixture(scope="module")
def browser():
    if sync_playwright is None:
        unavailable("playwright is missing: pip install playwright")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        unavailable("no browser: install one, such as with `apt-get install chromium`, or name one in the environment variable CHROMIUM")
    expect.set_options(timeout=1000 * PATIENCE)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=FLAGS)  # its profile is a temporary folder
        yield started
        started.close()


@contextlib.contextmanager
def watched_page(browser):
    "A page, and what goes wrong on it: errors on the console, requests that fail or go to another machine."
    page, complaints = browser.new_page(viewport={"width": 1300, "height": 1000}), []
    page.set_default_timeout(1000 * PATIENCE)

    def check_host(request) -> None:
        if urlsplit(request.url).scheme not in ("data", "blob") and urlsplit(request.url).hostname != "localhost":
            complaints.append(f"reached for {request.url}")

    page.on("request", check_host)
    page.on("websocket", check_host)
    page.on("console", lambda message: message.type == "error" and complaints.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url} {request.failure}"))
    yield page, complaints
    page.close()


def answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def stop(process: subprocess.Popen) -> None:
    "And everything that it started."
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for each in psutil.wait_procs(children, timeout=5)[1]:
            each.kill()
    process.kill()
    process.wait()


@contextlib.contextmanager
def serving(command: list[str], port: int, folder: Path, **environment: str):
    "The command from when it answers at the port. What it prints and its temporary files go to the folder."
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(folder), **environment}, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        try:
            end = time.monotonic() + PATIENCE
            while not answers(port):
                assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.2)
            yield process
        finally:
            stop(process)


def explore(port: int) -> list[str]:
    return ["farmer.cli", "explore", "--no-browser", "--port", str(port)]


@pytest.fixture(scope="module")
def explore_port(tmp_path_factory):
    port = free_port()
    with serving(explore(port), port, tmp_path_factory.mktemp("explore")):
        yield port


@contextlib.contextmanager
def explorer_page(browser, port: int):
    with watched_page(browser) as (page, complaints):
        page.goto(f"http://localhost:{port}/")
        page.locator(".farmer-variance-now").wait_for()
        yield page, complaints


@pytest.fixture(scope="module")
def shared_page(browser, explore_port):
    "One page, and with it one kernel, for many tests."
    with explorer_page(browser, explore_port) as both:
        yield both


@pytest.fixture
def fresh_page(browser, explore_port):
    with explorer_page(browser, explore_port) as both:
        yield both


# Of code cells: [ ] not run, [*] running or waiting, [7] done. After an error, the cells that waited are [ ] again.
PROMPTS = 'Array.from(document.querySelectorAll(".jp-CodeCell .jp-InputPrompt"), prompt => prompt.textContent)'
RAN = f"{PROMPTS}.some(text => /[0-9]/.test(text)) && !{PROMPTS}.some(text => text.includes('*'))"


@pytest.fixture(scope="module")
def lab_page(browser, tmp_path_factory):
    "A copy of the notebook in JupyterLab, all its cells run."
    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    shutil.copy(NOTEBOOK, folder)
    settings = folder / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"windowingMode": "none"}))  # cells out of sight are on the page, too
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    own |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    command = ["jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0"]
    command += ["--IdentityProvider.token=secret", f"--ServerApp.root_dir={folder}", "--LabApp.news_url=None"]
    with (
        serving(command, port, folder, **{name: str(folder / place) for name, place in own.items()}),
        watched_page(browser) as (page, complaints),
    ):
        page.goto(f"http://localhost:{port}/lab/tree/{NOTEBOOK.name}?token=secret")
        page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()  # the notebook's own sign says idle before there is a kernel
        page.locator(".lm-MenuBar-itemLabel").get_by_text("Run", exact=True).click()
        page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
        page.wait_for_function(RAN, timeout=4000 * PATIENCE)
        yield page, complaints


@pytest.fixture(autouse=True)
def no_complaints(request):
    "At the end of a test, nothing has gone wrong on its page."
    pages = [request.getfixturevalue(name) for name in ("shared_page", "fresh_page", "lab_page") if name in request.fixturenames]
    yield
    for _, complaints in pages:
        found = complaints.copy()
        complaints.clear()
        assert not found


# --- farmer explore


@pytest.mark.parametrize("title", STEPS)
def test_panels_on_the_page(shared_page, title):
    page = shared_page[0]
    page.get_by_role("button", name=title, exact=True).click()
    shown = Shown(page, title)
    expect(shown.panel).to_be_visible()
    expect(page.locator("[class*=farmer-]").first).to_contain_class(f"farmer-{shown.name}")  # and no other panel
    drive(shown, title)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_uploads_on_the_page(shared_page, tmp_path):
    page = shared_page[0]
    page.get_by_role("button", name="Your image", exact=True).click()
    upload(Shown(page, "Your image"), tmp_path, DEFAULT_MODEL)


def test_another_model_on_the_page(fresh_page):
    "Every panel opens for it, but the one that compares it with others says that there are none."
    page = fresh_page[0]
    models = page.locator("select").first
    choose_next(models)
    expect(models).to_have_value("digits")
    for title in STEPS:
        page.get_by_role("button", name=title, exact=True).press("Enter")
        shown = Shown(page, title)
        if title == "Basis":
            expect(page.get_by_role("alert")).to_contain_text("no other embedded model was trained on digits")
            assert not shown.look()
        else:
            expect(shown.code).to_contain_text(f"{PANELS[title].__name__}(Subject.load('digits')).show()")
            expect(page.get_by_role("alert")).to_have_count(0)
            seen = shown.wait(lambda now: all(now.values()))
            if title != "Your image":
                check_code(shown.code.inner_text(), seen)


def test_interrupt_ends_the_command_and_its_kernels(tmp_path):
    port = free_port()
    with serving(explore(port), port, tmp_path) as process:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://localhost:{port}/", timeout=PATIENCE).read()  # starts a kernel
        kernels = psutil.Process(process.pid).children(recursive=True)
        assert kernels
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert not psutil.wait_procs(kernels, timeout=10)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["log"] and "Traceback" not in (tmp_path / "log").read_text()


def test_a_port_in_use_is_refused(explore_port):
    process = farmer_process("explore", "--no-browser", "--port", explore_port)
    printed, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and not printed and error.count("\n") == 1
    assert error.startswith(f"farmer: port {explore_port} cannot be used") and "--port" in error


# --- JupyterLab


def test_the_notebook_runs_in_jupyterlab(lab_page):
    page = lab_page[0]
    assert not page.locator(".jp-OutputArea-output").filter(has_text="Traceback (most recent call last)").all_inner_texts()
    assert all(any(map(str.isdigit, text)) for text in page.evaluate(PROMPTS))


@pytest.mark.parametrize("title", STEPS)
def test_panels_in_jupyterlab(lab_page, title):
    drive(Shown(lab_page[0], title), title)


def test_uploads_in_jupyterlab(lab_page, tmp_path):
    upload(Shown(lab_page[0], "Your image"), tmp_path, "glyphs-field")  # the notebook's subject
