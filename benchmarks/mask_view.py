"""How long the mask view of a long prompt takes, from the request to the painted page.

    python -m benchmarks.mask_view --tokens 4000

The model is small and random, with pictures of 256 soft tokens as in the published checkpoints: a mask depends on the
prompt's length and pictures, not on the weights. Each part is timed separately: `engine_s` is `Engine.mask` and
`Engine.inspect`, `html_s` is writing the HTML, `painted_s` is Debian's chromium from receiving the HTML until both
masks are on the screen, and `redrawn_s` is one further drawing (each zoom and move).
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from benchmarks.timing import machine
from components.inside.mask_view import mask_html
from gemma3_core.config.gemma3 import Gemma3Config
from gemma3_core.engine import DEMO_MODEL, Engine, Request, Turn
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

ASSETS = Path(__file__).resolve().parent.parent / "assets"
RESULT = Path(__file__).parent / "results" / "mask_view.json"
SOFT_TOKENS, PICTURES = 256, 6
WINDOW = 1024

# Waits until the drawing is on the screen: two frames later.
_PAINTED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
_SHOW = f"""async (html) => {{
  await {_PAINTED};
  const start = performance.now();
  document.querySelector("#inside").innerHTML = html;
  await {_PAINTED};
  const painted = performance.now();
  const view = document.querySelector(".mask-view").maskView;
  view.draw();
  await {_PAINTED};
  return [painted - start, performance.now() - painted];
}}"""


@dataclass(frozen=True)
class Figures:
    """Times in seconds for one prompt of `tokens` tokens with `pictures` pictures; the page receives `html_bytes`."""

    tokens: int
    pictures: int
    engine_s: float
    html_s: float
    html_bytes: int
    painted_s: float
    redrawn_s: float

    @property
    def total_s(self) -> float:
        return self.engine_s + self.html_s + self.painted_s


def write_checkpoint(folder: Path, context: int) -> None:
    """Writes a small random model with the demo model's tokenizer and SOFT_TOKENS soft tokens for each picture."""
    tokenizer = Gemma3Tokenizer.from_pretrained(DEMO_MODEL)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 6, "num_attention_heads": 1}
    text |= {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": WINDOW, "vocab_size": len(tokenizer)}
    text |= {"max_position_embeddings": context}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 896, "patch_size": 14}
    ids = {"image_token_index": tokenizer.image_token_id, "boi_token_index": tokenizer.boi_token_id}
    ids |= {"eoi_token_index": tokenizer.eoi_token_id, "eos_token_id": [tokenizer.eos_token_id]}
    config = Gemma3Config.from_dict(
        {"text_config": text, "vision_config": vision, "mm_tokens_per_image": SOFT_TOKENS, **ids}
    )
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 896, "width": 896}
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    (folder / "processor_config.json").write_text(json.dumps({"image_seq_length": SOFT_TOKENS}))


def request_of(engine: Engine, tokens: int, pictures: int) -> Request:
    """A request with several pictures and words between them; its prompt has nearly, but never more than, `tokens`
    tokens."""
    picture = Image.new("RGB", (640, 480), (90, 120, 200))

    def asked(words: int) -> Request:
        turns = []
        for number in range(pictures):
            part = words * (number + 1) // pictures - words * number // pictures
            turns += [Turn("user", "What color is it?" + " star" * part, (picture,)), Turn("assistant", "Blue.")]
        return Request((*turns, Turn("user", "And now?")))

    least, most = 0, tokens
    while most - least > 1:
        middle = (least + most) // 2
        fits = len(engine.inspect(asked(middle)).tokens) <= tokens
        least, most = (middle, most) if fits else (least, middle)
    return asked(least)


def measure(tokens: int, pictures: int, rounds: int, show: Callable[[str], list[float]]) -> Figures:
    """Medians over `rounds`; `show` puts the HTML into a page and returns milliseconds until painted and redrawn."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), context=max(8192, 2 * tokens))
        engine = Engine.load(folder, device="cpu")
    request = request_of(engine, tokens, pictures)
    times: list[tuple[float, ...]] = []
    html = ""
    for _ in range(rounds):
        start = time.perf_counter()
        mask, prompt = engine.mask(request), engine.inspect(request)
        drawn = time.perf_counter()
        html = mask_html(mask, prompt)
        made = time.perf_counter()
        painted, redrawn = show(html)
        times.append((drawn - start, made - drawn, painted / 1000, redrawn / 1000))
    engine_s, html_s, painted_s, redrawn_s = (round(median(column), 4) for column in zip(*times, strict=True))
    return Figures(len(mask.tokens), pictures, engine_s, html_s, len(html.encode()), painted_s, redrawn_s)


def measure_in_browser(browser: Any, tokens: int, pictures: int, rounds: int) -> Figures:
    """Measures in a playwright browser, on a page with only the app's own script and style."""
    style, script = (ASSETS / "style.css").read_text("utf-8"), (ASSETS / "masks.js").read_text("utf-8")
    empty = f'<style>{style}</style><script>{script}</script><div id="inside"></div>'
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_content(empty)

    def show(html: str) -> list[float]:
        result: list[float] = page.evaluate(_SHOW, html)
        return result

    try:
        return measure(tokens, pictures, rounds, show)
    finally:
        page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    program = shutil.which("chromium")
    if program is None:
        parser.error("chromium is not installed (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--headless", "--no-sandbox", "--disable-gpu"])
        figures = measure_in_browser(browser, arguments.tokens, arguments.pictures, arguments.rounds)
        browser.close()
    report: dict[str, Any] = {"machine": machine(), **asdict(figures), "total_s": round(figures.total_s, 4)}
    arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print({name: value for name, value in report.items() if name != "machine"})


if __name__ == "__main__":
    main()
