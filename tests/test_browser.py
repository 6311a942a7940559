"The explorer's widgets in a real browser, moved with the keyboard: on the page of `farmer explore` and in JupyterLab."
import contextlib
import html
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from helpers import farmer_process, free_port
from PIL import Image

from farmer import Farmer
from farmer.analysis import DEFAULT_MODEL, read_picture
from farmer.explorer import PANELS
from farmer.plots import picture_grid

try:
    from playwright.sync_api import expect, sync_playwright
except ImportError:
    sync_playwright = None

NOTEBOOK = Path(__file__).parent.parent / "nbs" / "22_explorer.ipynb"
BROWSERS = {"chromium": ("chromium", "chromium-browser", "google-chrome"), "firefox": ("firefox-esr", "firefox")}
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()
PATIENCE = 90  # seconds for anything to happen; a busy machine may need them

# What to move, one after the other from the start of a panel; what the line of code then says; the outputs that change.
# No other output may.
STEPS = {
    "Variance": [
        ("image", "image=9", "strip note"),
        ("variance times", "scale=1.1", "now"),
        ("seed", "seed=1", "now strip"),
    ],
    "Swap": [
        ("image A", "first=9", "swapped tokens note"),
        ("image B", "second=18", "swapped tokens note"),
        ("5", "tokens=(0, 1, 2, 3, 4, 6, 7,", "swapped"),
        ("none", "tokens=()", "swapped"),
        ("9", "tokens=(9,)", "swapped"),
        ("all", "show(first=9, second=18)", "swapped"),
        ("9", "8, 10,", "swapped"),
    ],
    "Traverse": [
        ("image", "image=9", "now sweep ranking note"),
        ("token", "token=6", "now sweep ranking note"),
        ("channel", "channel=1", "now sweep ranking"),
        ("deviations", "offset=1.75", "now"),
    ],
    "Bits": [
        ("image", "image=9", "maps note"),
        ("label", "label='none'", "maps note"),
    ],
    "Mixture": [
        ("image", "image=9", "image figure note"),
        ("token", "token=6", "image figure note"),
        ("channel up", "up=2", "figure"),
        ("channel across", "across=1", "figure"),
        ("guidance w", "scale=1.5", "figure note"),
    ],
    "Basis": [
        ("image", "image=9", "rows"),
        ("donor of z^R", "donor=18", "rows"),
        ("variance times", "scale=1.1", "rows"),
    ],
    "Your image": [
        ("canvas", "show()", "seen note nearest latents"),
    ],
    "Recolour": [
        ("image", "image=9", "where made"),
        ("zoom", "zoom=1.1", "where made"),
        ("giver", "giver=18", "made"),
    ],
}

# What every output of a panel shows: the bytes of the pictures that the browser could decode, and words; the lines and words of a figure; a text.
# A picture that gives way to the next while it is decoded is decoded anew; one that stays and cannot be decoded is an error.
LOOK = """async (panel, name) => {
  const decode = image => {
    const source = image.src;
    return image.decode().catch(error => { if (image.src === source) throw error; return decode(image); });
  };
  const shown = {};
  for (const each of panel.querySelectorAll(`[class*="farmer-${name}-"]`)) {
    const output = each.className.match(/farmer-[a-z]+-([a-z]+)/)[1];
    const pictures = Array.from(each.querySelectorAll("img"));
    if (each.querySelector("svg")) {
      const lines = Array.from(each.querySelectorAll("svg g path"), path => path.getAttribute("d") + path.getAttribute("transform"));
      shown[output] = lines.concat(Array.from(each.querySelectorAll("svg text"), text => text.textContent)).join(" ");
    } else if (pictures.length) {
      await Promise.all(pictures.map(decode));
      shown[output] = pictures.map(picture => picture.src).join(" ") + each.textContent;
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
        button = self.panel.get_by_role("button", name="choose a file")
        if in_firefox(self.page):  # where a dialog, once open, stays open without a screen
            self.page.evaluate("HTMLInputElement.prototype.click = function () { this.id = 'asked'; document.body.append(this); }")
            button.press("Enter")
            self.page.locator("#asked").set_input_files(path)
            self.page.evaluate("document.querySelector('#asked').remove()")
            return
        with self.page.expect_file_chooser() as chooser:
            button.press("Enter")
        chooser.value.set_files(path)


def in_firefox(page) -> bool:
    return page.context.browser.browser_type.name == "firefox"


def choose_next(select) -> None:
    "Opened first: JupyterLab takes the arrows of a list that is closed for its own. Without a screen, no key reaches an open list of Firefox."
    if in_firefox(select.page):
        select.select_option(index=select.evaluate("each => each.selectedIndex") + 1)
        return
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
            assert shown[name].startswith(" ".join(re.findall('src="([^"]*)"', content.html))), name
        elif isinstance(content, str):
            assert shown[name] == html.unescape(re.sub("<[^>]*>", "", content)), name


def drive(shown: Shown, title: str) -> None:
    "Every control changes what hangs on it and nothing else; the line of code says so; reset goes back to the start."
    shown.panel.scroll_into_view_if_needed()
    if ".show()" not in shown.code.text_content():
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
        check_code(shown.code.text_content(), before)
    shown.reset()
    followed = {"figure"}  # whose lines depend on its width, which the page mends after a while
    left = changed(start, shown.wait(lambda now: changed(start, now) <= followed)) - followed
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
        assert after["seen"].split("as the")[0] in picture_grid(one, titles=["as the model sees it"]).html
        expect(shown.alert).to_have_count(0)
        if name == "red.png":
            shown.choose_file(folder / "text.png")
            expect(shown.alert).to_contain_text("not a picture")
            assert not changed(after, shown.look())
        before = after
    shown.move("canvas")
    assert changed(before, shown.wait(lambda now: changed(before, now) == start.keys())) == start.keys()
    shown.reset()
    followed = {"figure"}  # whose lines depend on its width, which the page mends after a while
    left = changed(start, shown.wait(lambda now: changed(start, now) <= followed)) - followed
    assert not left, f"not reset: {left}"


# --- Browser and servers


def unavailable(message: str) -> None:
    "No failure on a machine that lacks something, but continuous integration must not lack it."
    (pytest.fail if os.environ.get("CI") else pytest.skip)(message)


@pytest.fixture(scope="module")
def playwright():
    if sync_playwright is None:
        unavailable("playwright is missing: pip install playwright")
    expect.set_options(timeout=1000 * PATIENCE)
    with sync_playwright() as running:
        yield running


@contextlib.contextmanager
def started(playwright, name: str):
    "Chromium or Firefox, as it is installed here; its profile is a temporary folder."
    path = os.environ.get(name.upper()) or next(filter(None, map(shutil.which, BROWSERS[name])), None)
    if path is None:
        unavailable(f"no {name}: install it, such as with `apt-get install {BROWSERS[name][0]}`, or name one in the environment variable {name.upper()}")
    if name == "firefox":
        running = playwright.firefox.launch(channel="moz-firefox", executable_path=path)
    else:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
    yield running
    running.close()


@pytest.fixture(scope="module", params=["chromium", pytest.param("firefox", marks=pytest.mark.long)])
def browser(playwright, request):
    with started(playwright, request.param) as running:
        yield running


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
            cwd=folder, env={**os.environ, "TMPDIR": str(folder), **environment}, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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


@contextlib.contextmanager
def exploring(folder: Path):
    "The command's process, and the address that it prints."
    port = free_port()
    with serving(explore(port), port, folder) as process:
        yield process, re.search(rf"http://localhost:{port}/\?token=\S+", (folder / "log").read_text())[0]


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    with exploring(tmp_path_factory.mktemp("explore")) as both:
        yield both


def wait_for_room(process: subprocess.Popen) -> None:
    "Three pages may be open at once; a closed one counts until its kernel has ended."
    end = time.monotonic() + PATIENCE
    while len(kernels(process)) > 2 and time.monotonic() < end:
        time.sleep(0.5)


@contextlib.contextmanager
def explorer_page(browser, address: str):
    with watched_page(browser) as (page, complaints):
        page.goto(address)
        page.locator(".farmer-variance-now img").first.wait_for()
        yield page, complaints


@pytest.fixture(scope="module")
def shared_page(browser, explorer):
    "One page, and with it one kernel, for many tests."
    with explorer_page(browser, explorer[1]) as both:
        yield both


@pytest.fixture
def fresh_page(browser, explorer):
    wait_for_room(explorer[0])
    with explorer_page(browser, explorer[1]) as both:
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
    page.get_by_role("tab", name=title, exact=True).click()
    shown = Shown(page, title)
    expect(shown.panel).to_be_visible()
    expect(page.locator("[class*=farmer-]").first).to_contain_class(f"farmer-{shown.name}")  # and no other panel
    drive(shown, title)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_uploads_on_the_page(shared_page, tmp_path):
    page = shared_page[0]
    page.get_by_role("tab", name="Your image", exact=True).click()
    upload(Shown(page, "Your image"), tmp_path, DEFAULT_MODEL)


def test_another_model_on_the_page(fresh_page):
    "Every panel opens for it but the one that compares models of the same data: there is no other, and no tab."
    page = fresh_page[0]
    models = page.locator("select").first
    choose_next(models)
    expect(models).to_have_value("digits")
    tabs = page.get_by_role("tab")
    expect(tabs).to_have_text([title for title in STEPS if title != "Basis"])
    for title in tabs.all_inner_texts():
        page.get_by_role("tab", name=title, exact=True).press("Enter")
        shown = Shown(page, title)
        expect(shown.code).to_contain_text(f"{PANELS[title].__name__}(Subject.load('digits')).show()")
        expect(page.get_by_role("alert")).to_have_count(0)
        seen = shown.wait(lambda now: all(now.values()))
        if title != "Your image":
            check_code(shown.code.text_content(), seen)


def test_no_wrong_panel_under_a_tab(fresh_page):
    "From the click on, a sign stands where the panel will be; and there is a name for everything that is seen or moved."
    page = fresh_page[0]
    page.evaluate("""() => document.addEventListener("click", () => queueMicrotask(() => setTimeout(() => {
        const seen = name => document.querySelector(name)?.getClientRects().length > 0;
        window.atOnce = [seen(".farmer-variance"), seen(".explorer-waiting")]; })))""")
    page.get_by_role("tab", name="Traverse", exact=True).click()
    assert page.evaluate("atOnce") == [False, True]
    expect(page.get_by_role("tab", selected=True)).to_have_text("Traverse")
    expect(page.locator(".farmer-traverse")).to_be_visible()
    expect(page.locator(".explorer-waiting")).to_be_hidden()
    for name in ("image", "token", "channel", "deviations"):
        expect(page.get_by_role("slider", name=name, exact=True)).to_be_visible()
    assert all(page.locator(".farmer-traverse img").evaluate_all("images => images.map(image => image.alt)"))


@pytest.mark.parametrize("width", [420, 1400])
def test_nothing_is_cut(shared_page, width):
    page = shared_page[0]
    size = page.viewport_size
    page.set_viewport_size({"width": width, "height": 1000})
    for title in ("Variance", "Swap", "Mixture"):
        page.get_by_role("tab", name=title, exact=True).click()
        expect(Shown(page, title).panel).to_be_visible()
        page.wait_for_function("""width => Array.from(document.querySelectorAll(".explorer-page *")).every(each =>
            !each.getClientRects().length || each.closest("svg") || each.getBoundingClientRect().right <= width)""", arg=width)  # a figure follows in time
        if (width, title) == (1400, "Swap"):
            assert page.locator(".farmer-swap-swapped img").first.bounding_box()["width"] >= 280
    page.set_viewport_size(size)


def kernels(process: subprocess.Popen) -> set[int]:
    return {child.pid for child in psutil.Process(process.pid).children(recursive=True)}


def ask(address: str, path: str | None = None, host: str | None = None, **headers: str) -> http.client.HTTPResponse:
    "The start of an answer; the rest of a page comes when its kernel has run."
    parts = urlsplit(address)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=PATIENCE)
    connection.request("GET", f"{parts.path}?{parts.query}" if path is None else path, headers={"Host": host or parts.netloc, **headers})
    return connection.getresponse()


CHANNELS = "/api/kernels/00000000-0000-0000-0000-000000000000"


def test_the_page_opens_for_those_who_may_see_it(tmp_path):
    """Nobody else starts a kernel: neither other web pages, which do not know the token, nor names of this machine that others made up.

    Of four who come together, three get one. A file of settings in the folder where the command is given is not read.
    """
    (tmp_path / "voila.json").write_text('{"Voila": {"base_url": "/elsewhere/"}}')
    with exploring(tmp_path) as (process, address):
        port, token = urlsplit(address).port, urlsplit(address).query
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version": "13"}
        refused = [ask(address, path) for path in ("/", "/?token=", "/?token=wrong", "/voila/files/x.png", CHANNELS)]
        refused += [ask(address, host=host) for host in ("evil.example", f"localhost.evil.example:{port}", "192.0.2.1", "localhost.")]
        refused += [ask(address, Origin=origin) for origin in ("http://evil.example", "null", "http://localhost:1", f"http://evil.example:{port}")]
        refused.append(ask(address, f"{CHANNELS}/channels?{token}", **upgrade, Origin="http://evil.example"))
        assert [answer.status for answer in refused] == [403] * len(refused)
        assert "farmer explore" in refused[0].read().decode() and not kernels(process)
        answers = [ask(address, host=host) for host in (None, f"127.0.0.1:{port}", f"[::1]:{port}")]
        assert [answer.status for answer in answers] == [200] * 3 and len(kernels(process)) == 3
        fourth = ask(address)
        assert fourth.status == 503 and b"Three pages of the explorer are open" in fourth.read() and len(kernels(process)) == 3
        cookie = answers[0].getheader("Set-Cookie")
        assert "samesite=strict" in cookie.lower() and "httponly" in cookie.lower()
        cookie = {"Cookie": cookie.partition(";")[0]}
        assert ask(address, CHANNELS, **cookie).status == 404  # may ask for a kernel, which there is none of
        assert ask(address, "/", **cookie).status == ask(address, CHANNELS, **cookie, Origin="http://evil.example").status == 403
        assert "Traceback" not in (tmp_path / "log").read_text()  # kernels that are ended in the middle of an answer may write one after this


def test_a_closed_page_leaves_no_kernel(browser, explorer):
    wait_for_room(explorer[0])
    before = kernels(explorer[0])
    with explorer_page(browser, explorer[1]) as (page, _):
        assert len(kernels(explorer[0]) - before) == 1
        page.close(run_before_unload=True)
    end = time.monotonic() + PATIENCE
    while not kernels(explorer[0]) <= before:
        assert time.monotonic() < end
        time.sleep(0.5)


def test_interrupt_ends_the_command_and_its_kernels(tmp_path):
    with exploring(tmp_path) as (process, address):
        ask(address).read()  # starts a kernel
        started = psutil.Process(process.pid).children(recursive=True)
        assert started
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert not psutil.wait_procs(started, timeout=10)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["log"] and "Traceback" not in (tmp_path / "log").read_text()


def test_a_port_in_use_is_refused(explorer):
    port = urlsplit(explorer[1]).port
    process = farmer_process("explore", "--no-browser", "--port", port)
    printed, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and not printed and error.count("\n") == 1
    assert error.startswith(f"farmer: port {port} cannot be used") and "--port" in error


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
