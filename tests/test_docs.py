"""Every Python block of docs/*.md runs, on small random checkpoints and a local picture.

The blocks of a section (from one `## ` heading to the next) are run one after another in one namespace, in a
folder of their own. Ids of checkpoints and addresses of pictures are replaced as `local` says; nothing else is.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from reference import TEXT, TOKENS_PER_IMAGE, VISION, randomise

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
PICTURE = "cow.jpg"
SEEING = ("google/gemma-3-4b-pt", "google/gemma-3-4b-it", "google/gemma-3-12b-it", "google/gemma-3-27b-it")
READING = ("google/gemma-3-270m-it", "google/gemma-3-1b-pt", "google/gemma-3-1b-it")
SHAPE = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "max_position_embeddings": 2048}
"""Wide enough for int4 with group size 128."""


def sections(text: str) -> dict[str, list[str]]:
    """The Python blocks below each heading."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        if blocks := re.findall(r"^```python\n(.*?)^```", body, re.DOTALL | re.MULTILINE):
            found[title] = blocks
    return found


SECTIONS = [(path, title) for path in DOCUMENTS for title in sections(path.read_text(encoding="utf-8"))]


def local(code: str, folders: dict[str, Path]) -> str:
    """The code with folders in place of Hub ids, and one local picture in place of every address."""
    for name, folder in folders.items():
        code = code.replace(f'"{name}"', repr(str(folder)))
    return re.sub(r'"https?://[^"]+"', repr(PICTURE), code)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: Any, small_tokenizer_folder: Path) -> dict[str, Path]:
    """A small random checkpoint that sees, and one that reads, under every id that the documents name."""
    from gemma3_core import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig
    from gemma3_core import Gemma3Tokenizer as Tokenizer

    tokenizer = Tokenizer.from_pretrained(small_tokenizer_folder)
    stops = [tokenizer.eos_token_id, tokenizer.end_of_turn_token_id]
    text = Gemma3TextConfig.from_dict({**TEXT, **SHAPE, "vocab_size": 352, "eos_token_id": stops})
    assert len(tokenizer) <= text.vocab_size
    ids = {"image_token_id": tokenizer.image_token_id, "boi_token_id": tokenizer.boi_token_id}
    ids |= {"eoi_token_id": tokenizer.eoi_token_id, "mm_tokens_per_image": TOKENS_PER_IMAGE, "eos_token_id": stops}
    models = {
        "seeing": Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=VISION, **ids)),
        "reading": Gemma3ForCausalLM(text),
    }
    made = {}
    for name, model in models.items():
        folder = made[name] = tmp_path_factory.mktemp(name)
        randomise(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        size = {"height": VISION["image_size"], "width": VISION["image_size"]}
        if name == "seeing":
            (folder / "preprocessor_config.json").write_text(json.dumps({"size": size}))
            (folder / "processor_config.json").write_text(json.dumps({"image_seq_length": TOKENS_PER_IMAGE}))
    return {**dict.fromkeys(SEEING, made["seeing"]), **dict.fromkeys(READING, made["reading"])}


@pytest.mark.parametrize(("path", "title"), SECTIONS, ids=[title for _, title in SECTIONS])
def test_every_block_of_the_documents_runs(path, title, folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (60, 200, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / PICTURE)
    namespace: dict[str, Any] = {}
    for number, block in enumerate(sections(path.read_text(encoding="utf-8"))[title], start=1):
        code = compile(local(block, folders), f"{path.name}, {title}, block {number}", "exec")
        exec(code, namespace)  # our own documents
    assert "print(" not in block or capsys.readouterr().out.strip()


def test_no_block_is_left_out_and_each_imports_what_it_uses_from_us():
    """What the test above does not run would not stay true: another indentation, another name for the language."""
    assert {path.name for path, _ in SECTIONS} >= {"gemma3.md", "inside.md"}  # the others hold figures, not programs
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        blocks = [block for found in sections(text).values() for block in found]
        assert len(re.findall(r"^\s*```\w", text, re.MULTILINE)) == len(blocks), path.name
        for block in blocks:
            modules = [node.module for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
            assert "transformers" not in {(module or "").split(".")[0] for module in modules}


def test_every_id_of_the_documents_has_a_local_stand_in(folders):
    """Or a block would reach for the network."""
    for path in DOCUMENTS:
        for blocks in sections(path.read_text(encoding="utf-8")).values():
            code = local("\n".join(blocks), folders)
            assert not re.search(r'"google/|https?://', code)


def test_the_page_names_every_public_name_but_parts_of_others():
    import gemma3_core

    text = (ROOT / "docs" / "gemma3.md").read_text(encoding="utf-8")
    parts = {"Gemma3ForCausalLM", "Gemma3ImageProcessor", "Gemma3ImageProcessorPil", "Gemma3Model", "Gemma3Processor"}
    parts |= {"Gemma3TextModel", "Gemma3Tokenizer", "GenerationConfig"}
    assert {name for name in gemma3_core.__all__ if name not in text} <= parts
