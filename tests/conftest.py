"""Fixtures that several test modules share. Nothing here reaches the network."""

import gc
import json
import lzma
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
# Nothing here speaks TLS, and each HTTP client would read all authorities' certificates, for 25 ms of a processor.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = os.devnull
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch: each process has a core, and its apps too
    gc.disable()  # until all is imported
# Some forty processes import gradio and torch; where bytecode is not kept, or is out of date, each compiles them anew.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    sys.dont_write_bytecode = False

import pytest
import torch
from checkpoints import write_chat_checkpoint
from compiling_once import compile_once
from hypothesis import HealthCheck, settings
from PIL import Image
from places import REPOSITORY
from running_app import chromium
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

# The same examples each time, however long a busy machine takes for one of them.
settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    """The processes beside this one have its environment."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = tempfile.TemporaryDirectory()
        config.add_cleanup(folder.cleanup)
        compile_once(Path(folder.name))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three processes for two cores, since much of the time is waiting.

    None beside this one for a single file, or on the GPU, whose memory they would share.
    """
    files = {Path(argument.partition("::")[0]) for argument in config.args}
    single = len(files) == 1 and files.pop().suffix == ".py"
    return 0 if single or "gpu" in (config.option.markexpr or "") else 3


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files begin first. Tests marked for what this machine lacks are left out; asked for by `-m` they are skipped
    and say why."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    lacking = {}
    if not torch.cuda.is_available():
        lacking["gpu"] = "there is no CUDA device"
    if not _has_cpu_kernels("avx2", "fma"):
        lacking["cpu_kernels"] = "this is not Linux on a processor with AVX2, with a C compiler"
    if not _has_cpu_kernels("avx512_vnni", "avx512vbmi", "avx512vl", "avx512bw"):
        lacking["vnni"] = "this is not Linux on a processor with AVX-512 VNNI and VBMI, with a C compiler"
    for mark, reason in lacking.items():
        marked = [item for item in items if item.get_closest_marker(mark)]
        if mark in (config.option.markexpr or ""):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))
        else:
            config.hook.pytest_deselected(items=marked)
            items[:] = [item for item in items if item not in marked]


def pytest_unconfigure() -> None:
    """Extensions in C++ report what is still frozen at the end as leaks."""
    gc.unfreeze()


def pytest_collection_finish() -> None:
    """What torch, transformers and Gradio are made of stays to the end: no collection need look through it again."""
    gc.enable()
    gc.freeze()


def _has_cpu_kernels(*needed: str) -> bool:
    """Read off the system, and not asked of the code that is tested."""
    processor = Path("/proc/cpuinfo")
    flags = set(processor.read_text().split()) if processor.exists() else set()
    compilers = [name for name in ("cc", "gcc", "clang") if shutil.which(name)]
    return flags.issuperset(needed) and bool(compilers)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With NO_SKIPS set, as in CI, a skipped test fails the run: there everything a test needs is there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("NO_SKIPS") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(params=[pytest.param(2, id="avx512", marks=pytest.mark.vnni), pytest.param(1, id="avx2")])
def kernel_level(request: pytest.FixtureRequest) -> Iterator[None]:
    """The CPU kernels for AVX-512, where the processor has it, and those for AVX2. Needs the mark cpu_kernels."""
    from gemma3_core.kernels import cpu as cpu_kernels

    kernels = cpu_kernels.library()
    assert kernels is not None
    assert kernels.choose_level(request.param) == request.param
    yield
    kernels.choose_level(2)


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium; for one module, because the driver's event loop is in the way of tests that have their own."""
    with chromium() as running:
        yield running


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}"
    "{% if message.content is string %}{{ message.content | trim }}{% else %}"
    "{% for part in message.content %}"
    "{{ '<start_of_image>' if part.type == 'image' else part.text | trim }}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real tokenizer, the published configs and photographs."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real tokenizer, configs and photographs are not beside this repository")
    return folder


@pytest.fixture(scope="session")
def real_tokenizer_folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3's tokenizer, chat template and processor configs, as a checkpoint's folder."""
    folder = tmp_path_factory.mktemp("real_tokenizer")
    with lzma.open(shared_data / "gemma3_tokenizer.json.xz") as packed, open(folder / "tokenizer.json", "wb") as file:
        shutil.copyfileobj(packed, file)
    for source, name in [
        ("gemma3_tokenizer_config.json", "tokenizer_config.json"),
        ("configs/preprocessor_config.json", "preprocessor_config.json"),
        ("configs/processor_config.json", "processor_config.json"),
    ]:
        (folder / name).write_bytes((shared_data / source).read_bytes())
    return folder


@pytest.fixture(scope="session")
def photos(shared_data: Path) -> list[Image.Image]:
    """The photographs, RGB, in the order of their names: 612 x 425, 640 x 853 and 640 x 640."""
    paths = sorted((shared_data / "photos").iterdir())
    return [Image.open(path).convert("RGB") for path in paths if path.suffix.lower() == ".jpg"]


@pytest.fixture(scope="session")
def small_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of Gemma's form that knows a few words, in a folder without other files."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    special += ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    plain = ["<mask>", "\n", "\n\n", "\n\n\n\n"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted(set("▁abcdefghijklmnopqrstuvwxyz<>_.,:ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"))
    vocabulary = {token: index for index, token in enumerate([*special, *plain, *bytes_, *letters])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = TemplateProcessing(single=["<bos>", "$A"], special_tokens=[("<bos>", 2)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
    folder = tmp_path_factory.mktemp("small_tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "GemmaTokenizer", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def processor(real_tokenizer_folder: Path) -> Any:
    """With Pillow, whose pixels equal those of the reference's Pillow back end bit for bit."""
    from gemma3_core.processor import Gemma3Processor

    return Gemma3Processor.from_pretrained(real_tokenizer_folder, backend="pil")


@pytest.fixture(scope="session")
def small_processor(small_tokenizer_folder: Path) -> Any:
    """8 soft tokens a picture, 16 x 16 pixels: quick, and without the shared data."""
    from gemma3_core.processor import Gemma3Processor

    processor = Gemma3Processor.from_pretrained(small_tokenizer_folder)
    images = processor.image_processor.with_options(size=16)
    return Gemma3Processor(images, processor.tokenizer, image_seq_length=8)


@pytest.fixture(scope="session")
def reference_processor(real_tokenizer_folder: Path) -> Any:
    """transformers' own processor, with its PIL image processor."""
    from transformers import Gemma3Processor, GemmaTokenizer
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokenizer = GemmaTokenizer.from_pretrained(real_tokenizer_folder)
    images = Gemma3ImageProcessorPil.from_pretrained(real_tokenizer_folder)
    return Gemma3Processor(images, tokenizer, chat_template=tokenizer.chat_template)


@pytest.fixture(scope="session")
def gradient_picture() -> Image.Image:
    """240 x 100, each pixel different from its neighbours."""
    columns = torch.arange(240).expand(100, 240)
    rows = torch.arange(100)[:, None].expand(100, 240)
    pixels = torch.stack([columns, rows * 2, (columns * 7 + rows * 3) % 256], dim=-1)
    return Image.fromarray(pixels.to(torch.uint8).numpy())


@pytest.fixture(scope="session")
def reference_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint for pictures and text, written by transformers. Not to be changed."""
    from reference import save_reference

    folder = tmp_path_factory.mktemp("reference")
    save_reference(folder)
    return folder


@pytest.fixture(scope="session")
def reference_text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint for text only, written by transformers. Not to be changed."""
    from reference import save_reference

    folder = tmp_path_factory.mktemp("reference_text")
    save_reference(folder, multimodal=False)
    return folder


@dataclass(frozen=True)
class Weights:
    """Folders of small random checkpoints, written by transformers. Not to be changed."""

    both: Path  # pictures and text
    text: Path


@pytest.fixture(scope="session")
def sharp_weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """With attention so sharp that generated tokens vary."""
    from reference import SHARP, save_reference

    folder = tmp_path_factory.mktemp("sharp")
    save_reference(folder / "both", sharpness=SHARP)
    save_reference(folder / "text", multimodal=False, sharpness=SHARP)
    return Weights(folder / "both", folder / "text")


@pytest.fixture(scope="session")
def weights(reference_folder: Path, reference_text_folder: Path) -> Weights:
    """What `ours` and `theirs` hold; a module may put other weights here."""
    return Weights(reference_folder, reference_text_folder)


@pytest.fixture(scope="module")
def theirs(weights: Weights) -> Any:
    from transformers import Gemma3ForConditionalGeneration

    return Gemma3ForConditionalGeneration.from_pretrained(weights.both).eval()


@pytest.fixture(scope="module")
def ours(weights: Weights) -> Any:
    from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration

    return Gemma3ForConditionalGeneration.from_pretrained(weights.both)


@pytest.fixture(scope="module")
def their_text(weights: Weights) -> Any:
    from transformers import Gemma3ForCausalLM

    return Gemma3ForCausalLM.from_pretrained(weights.text).eval()


@pytest.fixture(scope="module")
def our_text(weights: Weights) -> Any:
    from gemma3_core.models.text import Gemma3ForCausalLM

    return Gemma3ForCausalLM.from_pretrained(weights.text)


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_folder: Path) -> Path:
    """A whole small checkpoint for pictures and text, as the engine loads it. Not to be changed."""
    folder = tmp_path_factory.mktemp("chat") / "small-model"
    write_chat_checkpoint(folder, small_tokenizer_folder, multimodal=True)
    return folder


@pytest.fixture(scope="session")
def text_chat_folder(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_folder: Path) -> Path:
    """A whole small checkpoint for text only, as the engine loads it. Not to be changed."""
    folder = tmp_path_factory.mktemp("text_chat") / "small-text-model"
    write_chat_checkpoint(folder, small_tokenizer_folder, multimodal=False)
    return folder
