"""How fast the live page is: the first picture, what is transferred until then, and the time from a control to its picture.

    python benchmarks/live.py [--browser firefox]

`make web` first. Prints medians, and how busy the machine was: other work on its cores lengthens everything here.
"""
import argparse
import os
import shutil
import statistics
import threading

from playwright.sync_api import sync_playwright

from farmer.export import live_server

FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run".split()
# A control is set; the time until its section has drawn and the frame is shown.
MOVE = """([section, key, values]) => new Promise(async done => {
  const times = [], place = document.getElementById(section), control = place.querySelector(`[data-key="${key}"]`) ?? document.querySelector(`[data-key="${key}"]`);
  for (const value of values) {
    const start = performance.now();
    await new Promise(drawn => {
      place.addEventListener("drawn", () => requestAnimationFrame(() => setTimeout(drawn)), {once: true});
      control.value = value; control.dispatchEvent(new Event("input", {bubbles: true}));
    });
    times.push(performance.now() - start);
    await new Promise(rest => setTimeout(rest, 30));
  }
  done(times);
})"""
CONTROLS = [("variance", "variance", 4), ("swap", "donor", 29), ("traverse", "offset", 4), ("bits", "label", None), ("story", "token", None)]


def values(key: str, most: float | None, count: int = 50) -> list[str]:
    if key == "label":
        return [str(i % 10) for i in range(count)]
    if key == "token":
        return [str(i % 16) for i in range(count)]
    return [str(round(1 + i % (most - 1)) if key == "donor" else round((i * 0.7) % most, 2)) for i in range(1, count + 1)]


def first_picture(browser, address: str) -> tuple[float, int, int]:  # milliseconds; bytes until then, and until all of the story is there
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    page.locator('#story[data-state="ready"]').wait_for(timeout=120_000)
    time = page.evaluate("performance.getEntriesByName('first-picture')[0].startTime")
    files = page.evaluate("[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')].map(e => [e.transferSize, e.responseEnd])")
    context.close()
    return time, sum(size for size, end in files if end <= time), sum(size for size, _ in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browser", choices=("chromium", "firefox"), default="chromium")
    name = parser.parse_args().browser
    path = os.environ.get(name.upper()) or shutil.which(name) or shutil.which(f"{name}-esr")
    with live_server(0) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://localhost:{server.server_address[1]}/"
        if name == "firefox":
            browser = playwright.firefox.launch(channel="moz-firefox", executable_path=path)
        else:
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        print(f"{browser.browser_type.name} {browser.version}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before this began")
        runs = [first_picture(browser, address) for _ in range(5)]
        print(f"first live picture, cold: median {statistics.median(run[0] for run in runs) / 1000:.2f} s, least {min(run[0] for run in runs) / 1000:.2f} s (target 3)")
        print(f"transferred: {runs[0][1] / 1e6:.2f} MB until then (target 6), {runs[0][2] / 1e6:.2f} MB until all networks of the model are there")
        for model, target in (("digits", 60), ("photos", 120)):
            page = browser.new_page()
            page.goto(f"{address}#model={model}")
            for section, key, most in CONTROLS:
                page.locator(f"#{section}").scroll_into_view_if_needed()
                page.locator(f'#{section}[data-state="ready"]').wait_for(timeout=120_000)
                times = page.evaluate(MOVE, [section, key, values(key, most)])
                print(f"{model:7} {section:9} control to picture: median {statistics.median(times):4.0f} ms of {len(times)} (target {target})")
            page.close()
        browser.close()
        server.shutdown()


if __name__ == "__main__":
    main()
