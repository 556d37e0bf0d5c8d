"""How much memory `Engine.attention` and `Engine.why` take beyond the model: a picture with 4 crops at the widths of
Gemma 3 4B.

    python -m benchmarks.attention_memory

The layers are as wide as the 4B model's, but few, so that this runs on a small machine: one local and one global layer
and one layer of the encoder, with random weights. torch's peak allocation is measured: on a CPU by the profiler, which
sees torch's own allocations, on a GPU by its allocator. `further_layers_mb` is calculated, not measured:

- `attention`: a pass keeps only the requested rows of each finished layer, so the further layers add only those, and
  the logits of the published vocabulary. On Linux the growth of the process is measured, too, which counts everything:
  decoded pictures, library buffers, memory that malloc holds back.
- `why`: also the further layers' KV caches, of the turn and of the rows that are read at a time. There are as many rows
  at a time as with all 34 layers.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.timing import machine
from gemma3_core.config.gemma3 import GLOBAL, LOCAL, Gemma3Config
from gemma3_core.engine import DEMO_MODEL, Answered, DoneEvent, Engine, Request, Stats, Turn
from gemma3_core.engine.device_loop import DeviceLoop, Result
from gemma3_core.engine.own_thread import run_job
from gemma3_core.inspection import knockout
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.nn.cache import cache_bytes
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

RESULT = Path(__file__).parent / "results" / "attention_memory.json"
LAYERS, HEADS, VOCABULARY = 34, 8, 262_208
GLOBAL_EVERY = 6
TEXT_4B = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 1024,
}
VISION_4B = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "image_size": 896,
    "patch_size": 14,
}
SOFT_TOKENS = 256
CONTEXT = 8192
WIDE = (3584, 896)  # four crops


def write_checkpoint(folder: Path, text: dict[str, Any], vision: dict[str, Any], soft_tokens: int) -> None:
    """Writes a bfloat16 checkpoint with one local and one global layer of these widths and one layer of the encoder."""
    tokenizer = Gemma3Tokenizer.from_pretrained(DEMO_MODEL)
    kinds = ["sliding_attention", "full_attention"]
    few = {"num_hidden_layers": 2, "layer_types": kinds, "vocab_size": len(tokenizer)}
    ids = {"image_token_index": tokenizer.image_token_id, "boi_token_index": tokenizer.boi_token_id}
    ids |= {"eoi_token_index": tokenizer.eoi_token_id, "eos_token_id": [tokenizer.eos_token_id]}
    config = Gemma3Config.from_dict(
        {
            "text_config": {**text, **few, "max_position_embeddings": CONTEXT},
            "vision_config": {**vision, "num_hidden_layers": 1},
            "mm_tokens_per_image": soft_tokens,
            **ids,
        }
    )
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": vision["image_size"], "width": vision["image_size"]}
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    (folder / "processor_config.json").write_text(json.dumps({"image_seq_length": soft_tokens}))


def answer_about(engine: Engine, size: tuple[int, int]) -> Answered:
    """A made-up answer of one word about a wide picture with its crops."""
    picture = Image.effect_noise(size, 60).convert("RGB")
    request = Request((Turn("user", "What color is the star?", (picture,)),), pan_and_scan=True)
    prompt = engine.inspect(request)
    info = engine.info
    stats = Stats(
        model=info.name,
        device=info.device,
        dtype=info.dtype,
        quantization=info.quantization,
        num_images=1,
        num_crops=len(prompt.tiles) - 1,
        prompt_tokens=len(prompt.tokens),
        reused_tokens=0,
        new_tokens=1,
        queue_s=0.0,
        time_to_first_token_s=None,
        tokens_per_s=None,
        stop_reason="cancelled",
    )
    return Answered(request, DoneEvent("yellow", stats, (7,)))


def peak_allocated(work: Callable[[], Any]) -> int:
    """Bytes that torch allocates at its peak during `work`, beyond what it held before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    records = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for record in sorted(records, key=lambda event: event.start_ns()):
        held += record.nbytes()
        peak = max(peak, held)
    return peak


class LoopInThisThread(DeviceLoop):
    """Runs jobs where they are submitted: torch's profiler counts one thread only."""

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        future: Future[Result] = Future()
        run_job(future, job)
        return future


def growth(work: Callable[[], Any]) -> int | None:
    """Bytes by which the process grew at its peak during `work`; None if the system doesn't report it."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        return None
    try:
        clear.write_text("5")  # resets the peak to the current size
    except OSError:
        return None

    def field(name: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    before = field("VmRSS")
    work()
    return field("VmHWM") - before


def measure(folder: Path, size: tuple[int, int] = WIDE, device: str = "auto") -> dict[str, Any]:
    """Measures the checkpoint in `folder`; figures in millions of bytes."""
    engine = Engine.load(folder, device=device, dtype="bfloat16")
    engine._loop = LoopInThisThread()
    answered = answer_about(engine, size)

    for weight in engine._model.state_dict().values():
        weight.sum()  # reads the weights from disk now, so that the process does not grow by them later

    def look() -> None:
        engine.attention(answered, [0])

    grown = growth(look)  # on the first call: memory that malloc keeps would hide the growth in a second one
    allocated = peak_allocated(look)
    tokens = answered.done.stats.prompt_tokens
    rows = (LAYERS - len(engine.info.layers)) * HEADS * tokens * 2
    logits = VOCABULARY * 2
    return {
        "device": engine.info.device,
        "crops": answered.done.stats.num_crops,
        "tokens": tokens,
        "attention": {
            **_with_further_layers(allocated, rows + logits),
            "process_grew_mb": None if grown is None else _megabytes(grown),
        },
        "why": measure_why(engine, answered, rows + logits),
    }


def measure_why(engine: Engine, answered: Answered, kept: int) -> dict[str, Any]:
    """The same of `Engine.why`; `kept` are the bytes that the further layers add to one pass."""
    few, tokens = engine._model.text_config, answered.done.stats.prompt_tokens
    kinds = [GLOBAL if number % GLOBAL_EVERY == 0 else LOCAL for number in range(1, LAYERS + 1)]
    whole = few.replace(num_hidden_layers=LAYERS, layer_types=kinds)
    of_few, of_whole = (cache_bytes(config, tokens, torch.bfloat16) for config in (few, whole))
    most, at_a_time = knockout.MOST_BATCH_BYTES, max(1, knockout.MOST_BATCH_BYTES // of_whole)
    knockout.MOST_BATCH_BYTES = at_a_time * of_few
    try:
        allocated = peak_allocated(lambda: engine.why(answered, [0]))
    finally:
        knockout.MOST_BATCH_BYTES = most
    caches = (1 + at_a_time) * (of_whole - of_few)
    return {**_with_further_layers(allocated, caches + kept), "rows_at_a_time": at_a_time}


def _with_further_layers(allocated: int, further: int) -> dict[str, Any]:
    return {
        "allocated_mb": _megabytes(allocated),
        "further_layers_mb": _megabytes(further),
        "allocated_by_34_layers_mb": _megabytes(allocated + further),
    }


def _megabytes(number: int) -> float:
    return round(number / 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), TEXT_4B, VISION_4B, SOFT_TOKENS)
        report = {"machine": machine(), **measure(Path(folder), WIDE, arguments.device)}
    arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print({name: value for name, value in report.items() if name != "machine"})


if __name__ == "__main__":
    main()
