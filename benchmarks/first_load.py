"""What a visitor's first load takes: `python -m benchmarks.first_load`.

Opens the page with the demo model in Debian's chromium, each time as a new visitor: requests and kB sent until the page
rests, seconds until it can be used (here, and on a simulated slow 4G of 1.6 Mbit/s with 150 ms), layout shift (CLS),
and the seconds of a processor that it costs the server. Medians of `--rounds`.
"""

import argparse
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.timing import machine
from benchmarks.watched_app import WatchedApp, watched_app

RESULT = Path(__file__).with_name("results") / "first_load.json"
_RESTS_MS = 1500
_SLOW_4G = {"offline": False, "latency": 150, "downloadThroughput": 200_000, "uploadThroughput": 93_750}  # bytes/s
SHIFTS = """window.shifts = 0;
new PerformanceObserver((list) => { for (const shift of list.getEntries()) window.shifts += shift.value; })
  .observe({ type: "layout-shift", buffered: true });"""


@dataclass(frozen=True)
class FirstLoad:
    requests: int
    kilobytes: float
    usable_s: float
    layout_shift: float
    server_s: float


def first_load(browser: Any, app: WatchedApp, slow: bool = False) -> FirstLoad:
    """One new visitor's first load in a playwright browser."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    try:
        page = context.new_page()
        page.add_init_script(SHIFTS)
        requests: list[dict[str, Any]] = []
        sizes: Counter[str] = Counter()
        network = context.new_cdp_session(page)
        network.send("Network.enable")
        if slow:
            network.send("Network.emulateNetworkConditions", _SLOW_4G)
        network.on("Network.requestWillBeSent", lambda told: requests.append(told))

        def came(told: dict[str, Any]) -> None:
            sizes[told["requestId"]] += told.get("response", told)["encodedDataLength"]

        def ended(told: dict[str, Any]) -> None:
            # The whole size. The parts of the document have none, and streams never end.
            sizes[told["requestId"]] = told["encodedDataLength"]

        network.on("Network.responseReceived", came)
        network.on("Network.dataReceived", came)
        network.on("Network.loadingFinished", ended)
        cpu, start = _cpu_s(app), time.perf_counter()
        page.goto(app.url)
        page.locator("#chat button.example").first.wait_for()
        page.locator("#composer textarea:enabled").wait_for()
        usable = time.perf_counter() - start
        page.wait_for_timeout(_RESTS_MS)
        shift = float(page.evaluate("window.shifts"))
        sent = [one for one in requests if one["request"]["url"].startswith("http")]
        return FirstLoad(len(sent), sizes.total() / 1000, usable, shift, _cpu_s(app) - cpu)
    finally:
        context.close()


def _cpu_s(app: WatchedApp) -> float:
    """Seconds of a processor that the app has taken."""
    fields = Path(f"/proc/{app.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def medians(measure: Callable[[], FirstLoad], rounds: int) -> dict[str, float]:
    loads = [asdict(measure()) for _ in range(rounds)]
    return {name: round(median(load[name] for load in loads), 3) for name in loads[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    program = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if program is None:
        parser.error("chromium is not installed (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with watched_app() as app, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--headless", "--no-sandbox", "--disable-gpu"])
        first_load(browser, app)  # the server's own first one
        report: dict[str, Any] = {
            "machine": machine(),
            "here": medians(lambda: first_load(browser, app), arguments.rounds),
            "slow 4G": medians(lambda: first_load(browser, app, slow=True), arguments.rounds),
        }
        browser.close()
    arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print({name: value for name, value in report.items() if name != "machine"})


if __name__ == "__main__":
    main()
