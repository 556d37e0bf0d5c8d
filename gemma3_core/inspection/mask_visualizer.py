"""AttentionMaskVisualizer: the model's own masks, printed or as a figure."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gemma3_core.config.gemma3 import Gemma3Config, read_config
from gemma3_core.errors import ImageError, PromptError, UnsupportedOptionError
from gemma3_core.files.hub import resolve_folder
from gemma3_core.images.load import ImageSource, load_image
from gemma3_core.inspection.mask_view import FoldedMask, MaskView, mask_view
from gemma3_core.inspection.prompt import Segment
from gemma3_core.processor import Gemma3Processor, grouped_pictures
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = "<img>"
"""The place of a picture in a sentence, as in transformers' visualiser."""

DEFAULT_SEGMENTS = 40
_ALL, _SOME, _NONE = "■", "▣", "·"
_COLORS = {"image": "\033[93m", "special": "\033[96m", "padding": "\033[90m"}
_RESET = "\033[0m"
_LONGEST_LABEL = 24
_INCHES_A_SEGMENT = 0.16


class AttentionMaskVisualizer:
    """Shows which token may attend to which, on global and on local layers. Needs no weights."""

    def __init__(self, model_name: str | Path, revision: str | None = None, token: str | None = None):
        """Reads config and tokenizer of a folder or Hub id. Raises CheckpointError, ConfigError."""
        folder = resolve_folder(model_name, weights=False, revision=revision, token=token)
        self.name = folder.name if Path(model_name).is_dir() else str(model_name)
        self.config = read_config(folder)
        self.text_config = self.config.text_config if isinstance(self.config, Gemma3Config) else self.config
        self.processor = Gemma3Processor.from_pretrained(folder) if isinstance(self.config, Gemma3Config) else None
        self.tokenizer = self.processor.tokenizer if self.processor else Gemma3Tokenizer.from_pretrained(folder)

    def __call__(
        self, input_sentence: str | Sequence[str], suffix: str = "", *, most: int = DEFAULT_SEGMENTS, **options: Any
    ) -> None:
        """Prints the masks of a sentence, or of several, padded on the left to one length.

        Long image blocks and runs of text fold, so that at most `most` columns are shown. `options` are images and
        do_pan_and_scan: see `views`. Raises the errors of `views`.
        """
        colored = sys.stdout.isatty()
        for view in self.views(input_sentence, suffix, **options):
            print(self._page(view, most, colored))

    visualize_attention_mask = __call__
    """transformers' other name."""

    def text(self, input_sentence: str | Sequence[str], most: int = DEFAULT_SEGMENTS, **options: Any) -> str:
        """What a call prints, without colors; `options` are those of `views`."""
        return "\n".join(self._page(view, most, colored=False) for view in self.views(input_sentence, **options))

    def figure(
        self, input_sentence: str, suffix: str = "", *, most: int = 2 * DEFAULT_SEGMENTS, **options: Any
    ) -> "Figure":
        """A matplotlib figure of one sentence's masks, for `figure.savefig("mask.png")` or `.svg`.

        `options` and errors are those of `views`; see also `mask_figure`.
        """
        if not isinstance(input_sentence, str):
            raise PromptError("A figure shows one sentence. Make one figure for each.")
        [view] = self.views(input_sentence, suffix, **options)
        return mask_figure(view, most, title=self.name)

    def views(
        self,
        input_sentence: str | Sequence[str],
        suffix: str = "",
        images: ImageSource | Sequence[Any] | None = None,
        do_pan_and_scan: bool | None = None,
    ) -> list[MaskView]:
        """The masks as data, one view a sentence.

        Each `<img>` (or `<start_of_image>`) stands for the next of `images`, or without `images` for any square
        picture. Pan & scan (None is the checkpoint's setting) adds crops of long pictures. Raises PromptError,
        ImageError, UnsupportedOptionError (Gemma 3 has no `suffix`).
        """
        if suffix:
            raise UnsupportedOptionError(f"Gemma 3 has no suffix, got {suffix!r}. Put it at the end of the sentence.")
        if not isinstance(input_sentence, str | Sequence):
            raise PromptError(f"A sentence is a string, got {type(input_sentence).__name__}.")
        sentences = [input_sentence] if isinstance(input_sentence, str) else list(input_sentence)
        if not sentences or not all(isinstance(sentence, str) and sentence for sentence in sentences):
            raise PromptError("There is nothing to show: give a sentence, or several, none of them empty.")
        inputs = self._inputs(sentences, images, do_pan_and_scan)
        return [
            mask_view(self.text_config, self.tokenizer, **{name: rows[number : number + 1] for name, rows in inputs})
            for number in range(len(sentences))
        ]

    def _inputs(
        self, sentences: list[str], images: Any, do_pan_and_scan: bool | None
    ) -> list[tuple[str, torch.Tensor]]:
        """The sentences' model inputs without pixels, as the processor makes them."""
        if self.processor is None:
            if images is not None:
                raise PromptError(f"{self.name} reads text only. Leave the pictures out, or take a model that sees.")
            inputs = self.tokenizer(sentences, padding=True, padding_side="left", return_tensors="pt")
            return [(name, inputs[name]) for name in ("input_ids", "attention_mask")]
        texts = [sentence.replace(PICTURE, self.tokenizer.boi_token) for sentence in sentences]
        texts = self.processor.expand_images(texts, self._crops(texts, images, do_pan_and_scan))
        inputs = self.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        types = (inputs["input_ids"] == self.tokenizer.image_token_id).long()
        return [*((name, inputs[name]) for name in ("input_ids", "attention_mask")), ("token_type_ids", types)]

    def _crops(self, texts: list[str], images: Any, do_pan_and_scan: bool | None) -> list[int]:
        """The number of crops of each picture in the sentences; 0 if no pictures are given."""
        assert self.processor is not None
        places = [text.count(self.tokenizer.boi_token) for text in texts]
        if images is None:
            return [0] * sum(places)
        if not isinstance(images, ImageSource | list | tuple):
            raise ImageError(
                f"images are pictures (paths, URLs, bytes, Pillow pictures, arrays), got {type(images).__name__}. To "
                f"show any square ones, leave images out and write {PICTURE} for each."
            )
        groups = grouped_pictures(images)
        if [len(group) for group in groups] != places:
            raise PromptError(
                f"The sentences have {places} places for pictures ({PICTURE} or {self.tokenizer.boi_token}), but "
                f"{[len(group) for group in groups]} pictures were given. Give one for each place, in a list of its "
                "own for each sentence."
            )
        processor = self.processor.image_processor.with_options(do_pan_and_scan=do_pan_and_scan)
        return [len(processor.boxes(*load_image(picture).size)) for group in groups for picture in group]

    def _page(self, view: MaskView, most: int, colored: bool) -> str:
        segments, masks = view.folded(most)
        title = f"Attention mask of {self.name}: {len(view.tokens):,} tokens"
        legend = f"{_ALL} may attend   {_NONE} may not   {_SOME} some of a folded segment may"
        return "\n".join([title, legend, *_lines(segments, masks, colored), ""])


def mask_figure(view: MaskView, most: int = 2 * DEFAULT_SEGMENTS, title: str = "") -> "Figure":
    """A matplotlib figure of a prompt's masks, folded to at most `most` segments a side.

    Opens no window and leaves pyplot's state alone.
    """
    from matplotlib.figure import Figure

    segments, masks = view.folded(most)
    side = max(3.0, _INCHES_A_SEGMENT * len(segments))
    figure = Figure(figsize=(side * len(masks) + 1.5, side + 1.5), layout="constrained")
    figure.suptitle(f"{title}: {len(view.tokens):,} tokens" if title else f"{len(view.tokens):,} tokens")
    labels, places = [_short(segment.label) for segment in segments], range(len(segments))
    for axis, mask in zip(figure.subplots(1, len(masks), squeeze=False)[0], masks, strict=True):
        axis.imshow(mask.shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(_heading(mask))
        axis.set_xlabel("keys")
        axis.set_xticks(places, labels, rotation=90, fontsize=6, family="monospace")
        axis.set_yticks(places, labels, fontsize=6, family="monospace")
        axis.set_xticks([place - 0.5 for place in places], minor=True)
        axis.set_yticks([place - 0.5 for place in places], minor=True)
        axis.grid(which="minor", color="0.85", linewidth=0.3)
        axis.tick_params(which="minor", length=0)
    return figure


def _lines(segments: Sequence[Segment], masks: Sequence[FoldedMask], colored: bool) -> list[str]:
    """The masks side by side if the terminal is wide enough, else one below the other."""
    labels = [_short(segment.label) for segment in segments]
    numbers = [str(segment.start) for segment in segments]
    margin, digits = max(map(len, labels)), max(map(len, numbers))
    blocks = []
    for mask in masks:
        header = [" ".join(number.rjust(digits)[i] for number in numbers) for i in range(digits)]
        rows = [" ".join({0.0: _NONE, 1.0: _ALL}.get(share, _SOME) for share in row) for row in mask.shares]
        blocks.append([_heading(mask).ljust(2 * len(segments) - 1), *header, *rows])
    left = [" " * (margin + 1 + digits)] * (1 + digits)
    left += [
        _painted(label.ljust(margin), segment.kind, colored) + " " + number.rjust(digits)
        for label, number, segment in zip(labels, numbers, segments, strict=True)
    ]
    width = margin + 1 + digits + len(blocks) * (2 * len(segments) + 3)
    if width <= shutil.get_terminal_size(fallback=(200, 24)).columns:
        return ["   ".join([name, *parts]).rstrip() for name, *parts in zip(left, *blocks, strict=True)]
    return [f"{name}   {part}".rstrip() for block in blocks for name, part in zip(left, block, strict=True)]


def _heading(mask: FoldedMask) -> str:
    return "global layers" if mask.window is None else f"local layers, window {mask.window:,}"


def _painted(text: str, kind: str, colored: bool) -> str:
    return f"{_COLORS[kind]}{text}{_RESET}" if colored and kind in _COLORS else text


def _short(label: str) -> str:
    """A label on one line with visible white space."""
    visible = label.replace("\n", "\\n").replace("\t", "\\t")
    visible = repr(visible)[1:-1].replace("\\\\", "\\") if not visible.isprintable() else visible
    return visible if len(visible) <= _LONGEST_LABEL else visible[: _LONGEST_LABEL - 1] + "…"
