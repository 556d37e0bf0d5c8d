"""Puts a trained checkpoint in the place of the demo model, in bfloat16: `python -m training.ship runs/demo/last`.

The tokenizer's files come from the checkpoint, where it has some; the model card stays as it is.
"""

import argparse
from pathlib import Path

from gemma3_core.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.tokenizer import Gemma3Tokenizer
from training.evaluate import DEMO_MODEL
from training.model import special_id, write_processor_files
from training.tokenizer import TOKENIZER_FILES

MOST_BYTES = 9_000_000


def ship(source: Path, target: Path = DEMO_MODEL) -> None:
    """Writes config, weights, tokenizer and processor files to `target`.

    Raises ValueError where the file of weights would be too large.
    """
    model = Gemma3ForConditionalGeneration.from_pretrained(source, dtype="bfloat16")
    size = sum(2 * parameter.numel() for parameter in model.parameters())
    if size > MOST_BYTES:
        raise ValueError(f"{size:,} bytes of weights are more than {MOST_BYTES:,}, the most for one file in git")
    model.save_pretrained(target)
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            (target / name).write_bytes((source / name).read_bytes())
    write_processor_files(target, special_id(Gemma3Tokenizer.from_pretrained(target), "<end_of_turn>"))
    (target / "model.safetensors").chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    ship(parser.parse_args().checkpoint)


if __name__ == "__main__":
    main()
