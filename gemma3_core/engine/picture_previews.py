"""What the image encoder would get of pictures, for display before a question is asked."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

from gemma3_core.engine.api import PicturePreview
from gemma3_core.engine.picture_reader import PictureReader
from gemma3_core.engine.prompts import check_crops, load_picture, numbered, read_headers
from gemma3_core.images.crops import Crops
from gemma3_core.images.load import ImageSource, PictureHeader
from gemma3_core.images.processor import ImageProcessor

_LOOKED_AT = 1280  # pixels of the longer side of a picture for display


def picture_previews(
    pictures: Sequence[ImageSource],
    crops: Sequence[Crops],
    images: ImageProcessor,
    tokens_per_tile: int,
    reader: PictureReader,
) -> Iterator[PicturePreview]:
    """Yields one preview per picture, in order, decoding equal pictures once; `crops` as in a Turn.

    Raises ImageError naming the broken picture, PromptError for crops of other pictures, and ContextLengthError for too
    many pixels.
    """
    check_crops(crops, pictures)
    headers = read_headers(pictures)
    times = Counter(header.digest for header in headers)
    several: dict[tuple[bytes, str], PicturePreview] = {}
    for number, (header, own) in enumerate(zip(headers, crops or [None] * len(headers), strict=True)):
        key = header.digest, str(own)  # callers may give lists
        preview = several.get(key)
        if preview is None:
            with numbered(number, len(headers)):
                work = partial(_previewed, header, own, images, tokens_per_tile)
                preview = reader.submit(work, header.decoding_bytes).result()
        if times[header.digest] > 1:
            several[key] = preview
        yield preview


def _previewed(header: PictureHeader, crops: Crops, images: ImageProcessor, tokens_per_tile: int) -> PicturePreview:
    picture = load_picture(header)
    tiles = tuple(images.tile_pictures(picture, crops))
    picture.thumbnail((_LOOKED_AT, _LOOKED_AT))
    return PicturePreview(
        width=header.width,
        height=header.height,
        original=picture,
        tiles=tiles,
        boxes=tuple(images.boxes(header.width, header.height, crops)),
        tokens=len(tiles) * tokens_per_tile,
        note="" if crops else images.explain(header.width, header.height),
    )
