"""A first load stays as small as it was measured (`python -m benchmarks.first_load`), and then the page rests; it
and an answer cost the browser few proxies and copies."""

import re
from multiprocessing import current_process
from pathlib import Path

from running_app import opened

from benchmarks.first_load import first_load
from benchmarks.watched_app import WatchedApp

MOST_REQUESTS, MOST_KILOBYTES, MOST_SHIFT = 59, 450, 0.05
_COUNT_FRAMES = """const next = window.requestAnimationFrame.bind(window);
window.frames_asked_for = 0;
window.requestAnimationFrame = (drawn) => {
  window.frames_asked_for += 1;
  return next(drawn);
};"""
_LEAST_FRAMES_IN_A_SECOND = """async () => {
  let least = Infinity;
  for (let second = 0; second < 20 && least > 5; second++) {
    const before = window.frames_asked_for;
    await new Promise((passed) => setTimeout(passed, 1000));
    least = Math.min(least, window.frames_asked_for - before);
  }
  return least;
}"""

_COUNT_PROXIES = """const plain = window.Proxy;
window.proxies = { of_events: 0, of_components: 0 };
window.Proxy = new plain(plain, {
  construct(target, [of, handler]) {
    window.proxies.of_events += Object.hasOwn(of, "backend_fn");
    window.proxies.of_components += Object.hasOwn(of, "component_class_id");
    return new target(of, handler);
  },
});"""
_COUNT_COPIES = """const copy = window.structuredClone;
window.copied = [];
window.structuredClone = (value, options) => {
  window.copied.push(value !== null && typeof value === "object" ? "object" : typeof value);
  return copy(value, options);
};"""


def test_a_first_load_is_small_and_steady_asks_at_once_for_its_scripts_and_rests(browser, url):
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(url).lstrip("/")))
    page.add_init_script(_COUNT_FRAMES)
    page.goto(url)
    page.locator("#composer textarea:enabled").wait_for()
    page.wait_for_timeout(1500)
    assert page.evaluate(_LEAST_FRAMES_IN_A_SECOND) <= 5, "a page that stands draws on"
    named = page.locator("link[rel=modulepreload]").evaluate_all("(links) => links.map((l) => l.getAttribute('href'))")
    page.close()
    assert len(named) > 40
    assert {address for address in asked if re.search(r"\.js$", address)} == set(named)
    assert [address for address in asked if ".css" in address] == [
        address for address in asked if "styles.css?" in address
    ]

    # Not the server's own first one, which that was. Whose processor time is told does not matter here.
    load = first_load(browser, WatchedApp(url, process=current_process(), folder=Path(), log=Path()))
    assert load.requests <= MOST_REQUESTS
    assert load.kilobytes <= MOST_KILOBYTES
    assert load.layout_shift <= MOST_SHIFT


def test_a_load_makes_no_proxies_of_events_and_looks_for_no_component_that_is_not_there(browser, url):
    """There would be thousands, each read again for each component."""
    with opened(browser, url, before=lambda page: page.add_init_script(_COUNT_PROXIES)) as page:
        assert page.evaluate("gradio_config.dependencies.length") > 100
        assert page.evaluate("proxies.of_components") > 100
        assert page.evaluate("proxies.of_events") == 0
        listened_to = "gradio_config.dependencies.flatMap(({ targets }) => targets.map(([id]) => id))"
        known = "[0, ...gradio_config.components.map(({ id }) => id)]"
        assert set(page.evaluate(listened_to)) <= set(page.evaluate(known))


def test_an_answer_makes_no_copies_of_what_is_its_own_copy(browser, url):
    """Each would be a call into the browser, and a question makes so many that a phone feels them."""
    with opened(browser, url, before=lambda page: page.add_init_script(_COUNT_COPIES)) as page:
        page.locator("#chat button.example").first.click()
        page.locator("#chat .figures").wait_for()
        assert set(page.evaluate("copied")) == {"object"}
        assert page.evaluate("[1, 'a', null, undefined, true].every((one) => structuredClone(one) === one)")
        assert page.evaluate("structuredClone({ a: [1, new Date(5)] }).a[1].getTime()") == 5
        failure = "(one) => { try { structuredClone(one) } catch (error) { return error.name } }"
        assert page.evaluate(f"[() => 1, {{ a() {{}} }}, Symbol('a')].map({failure})") == ["DataCloneError"] * 3
