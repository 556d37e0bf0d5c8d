"""Puts a trained checkpoint in the place of the demo model, in bfloat16: `python -m training.ship runs/demo/last`.

The tokenizer's files come from the checkpoint, where it has some; the model card stays as it is.
"""

import argparse
from pathlib import Path

from gemma3_core.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.tokenizer import Gemma3Tokenizer
from gemma3_core.weight_files import weight_files
from training.evaluate import DEMO_MODEL
from training.learning.model import special_id, write_processor_files
from training.tokenizer import TOKENIZER_FILES

MOST_BYTES = 9_000_000
"""Of one file in git."""
MOST_IN_ALL = 30_000_000
"""Bytes of the weights."""
_SHARD_BYTES = MOST_BYTES - 200_000  # the rest is for a file's header


def ship(source: Path, target: Path = DEMO_MODEL) -> None:
    """Writes config, weights (in files of at most MOST_BYTES), tokenizer and processor files to `target`.

    Raises ValueError where the weights would be too large.
    """
    model = Gemma3ForConditionalGeneration.from_pretrained(source, dtype="bfloat16")
    size = sum(parameter.nbytes for parameter in model.parameters())
    if size > MOST_IN_ALL:
        raise ValueError(f"{size:,} bytes of weights are more than {MOST_IN_ALL:,}, the most for the demo model")
    model.save_pretrained(target, max_shard_size=_SHARD_BYTES)
    for file in weight_files(target):
        file.chmod(0o644)
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            (target / name).write_bytes((source / name).read_bytes())
    write_processor_files(target, special_id(Gemma3Tokenizer.from_pretrained(target), "<end_of_turn>"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    ship(parser.parse_args().checkpoint)


if __name__ == "__main__":
    main()
