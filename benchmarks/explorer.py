"""How long the explorer makes you wait: `python benchmarks/explorer.py`, with `--browser` also in Chromium.

For each embedded model and panel, the median and the slowest of 50 moves of a slider, from the new value to the new
pictures in the widgets (drawing, PNG encoding and handing over; no browser). With `--browser`, `farmer explore` is started
three times: seconds from the command to the first picture on the page, and the median of 50 presses of a key, from the key
to the new picture in the page.
"""
import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time

from timing import where

from farmer.analysis import Subject
from farmer.explorer import PANELS
from farmer.files import import_optional

MOVES = 50
MODELS = ("photos", "digits", "glyphs", "glyphs-field")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
WATCH = """name => {
    const picture = document.querySelector(name);
    window.waited = new Promise(resolve => document.addEventListener("keydown", () => {
        const start = performance.now();
        new MutationObserver((_, observer) => { observer.disconnect(); resolve(performance.now() - start); })
            .observe(picture, { childList: true, subtree: true, attributes: true, attributeFilter: ["src"] });
    }, { capture: true, once: true }));
}"""


def time_widgets(name: str) -> dict[str, list[float]]:
    "Milliseconds of every panel's first slider."
    widgets, results = import_optional("ipywidgets", "ipywidgets"), {}
    subject = Subject.load(name)
    for title, panel in PANELS.items():
        try:
            panel(subject).render()
        except ValueError:
            continue  # the panel does not apply to this model
        controls = panel(subject).show().children[1].children
        sliders = [control for control in controls if isinstance(control, (widgets.IntSlider, widgets.FloatSlider))]
        for slider in sliders:
            times, before = [], slider.value
            for move in range(MOVES + 3):
                value = slider.min + slider.step * (1 + move % int((slider.max - slider.min) / slider.step))
                begin = time.perf_counter()
                slider.value = value
                times.append(1000 * (time.perf_counter() - begin))
            slider.value, results[f"{title}, {slider.description}"] = before, times[3:]
    return results


def time_browser(name: str, executable: str) -> tuple[float, list[float]]:
    "Seconds to the first picture, and milliseconds from a key to the new picture."
    from playwright.sync_api import sync_playwright

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begin = time.perf_counter()
    command = [sys.executable, "-m", "farmer", "explore", name, "--no-browser", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address = server.stdout.readline().split()[0]  # with its token
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable, args=FLAGS.split())
            page = browser.new_page(viewport={"width": 1300, "height": 1000})
            while True:
                try:
                    page.goto(address, timeout=90_000)
                    break
                except Exception:  # not there yet
                    time.sleep(0.2)
            page.locator(".farmer-variance-now img").first.wait_for(timeout=90_000)
            opened = time.perf_counter() - begin
            slider = page.locator(".farmer-variance .noUi-handle").nth(1)
            slider.focus()
            times = []
            for move in range(MOVES + 3):
                page.evaluate(WATCH, ".farmer-variance-now")
                slider.press("ArrowRight" if move // 25 % 2 == 0 else "ArrowLeft")
                times.append(page.evaluate("window.waited"))
            browser.close()
    finally:
        server.terminate()
        server.wait()
    return opened, times[3:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browser", action="store_true")
    arguments = parser.parse_args()
    print(f"{where()}, OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')}")
    for name in MODELS:
        for key, times in time_widgets(name).items():
            print(f"{name:16}{key:32} median {statistics.median(times):6.1f} ms, slowest {max(times):6.1f} ms", flush=True)
    if arguments.browser:
        executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
        if executable is None:
            sys.exit("no chromium: install it, or set CHROMIUM to its path")
        for name in MODELS:
            opened, moved = zip(*(time_browser(name, executable) for _ in range(3)))
            key = f"key to picture median {statistics.median(map(statistics.median, moved)):.0f} ms (medians of 3)"
            print(f"{name:16}browser: first picture after {statistics.median(opened):.1f} s, {key}", flush=True)


if __name__ == "__main__":
    main()
