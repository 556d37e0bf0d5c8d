"""A GGUF file, its further parts and its mmproj file -> a checkpoint folder in the Hub's layout.

The folder holds what everything else here reads: config.json, the tokenizer, the chat template. Its weights stay in the
GGUF files, which `weights.json` names. Making it takes seconds, mostly for the tokenizer's merges, so it is kept in the
user's cache until the files change.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gemma3_core.errors import CheckpointError, Gemma3Error
from gemma3_core.gguf.header import Header, is_gguf, read_architecture, read_header
from gemma3_core.gguf.tensors import DECODER_PARTS, Q4_0, Q4_0_GROUP_SIZE, VISION_ARCHITECTURE
from gemma3_core.gguf.vocabulary import build_tokenizer

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "weights.json"
ARCHITECTURE = "gemma3"
IMAGE_TOKEN = "<image_soft_token>"
_FORMAT = 2
"""Format version of the cached folders; bump it to rebuild them."""
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_PROJECTOR_WORDS = re.compile(r"mmproj[-_.]?|model[-_.]|[-_.]?mmproj")
_PRECISION = re.compile(r"[-_.]?(?:ud-)?(?:i?q\d\w*|b?f16|f32)$")
_DECODER_WEIGHT = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_OUTPUTS_MULTIPLE = 16
_LAYERS_OF_27B = 62
_SAMPLING = {"do_sample": True, "top_k": 64, "top_p": 0.95}
"""As published for every Gemma 3; files seldom say it."""
_MAX_LAYERS = 1024


@dataclass(frozen=True)
class GgufCheckpoint:
    """The headers of a model's files: all parts of the decoder, and the mmproj file if there is one. Without lists of
    texts."""

    parts: tuple[Header, ...]
    mmproj: Header | None = None

    @property
    def text(self) -> Header:
        return self.parts[0]

    @property
    def paths(self) -> list[Path]:
        return [header.path for header in (*self.parts, *([] if self.mmproj is None else [self.mmproj]))]


def find_checkpoint(source: Path, mmproj: Path | None = None) -> GgufCheckpoint:
    """The checkpoint of a file, or of a folder with one model, and the mmproj file that lies beside it or is given.

    Raises CheckpointError.
    """
    path = _model_in(source) if source.is_dir() else source
    parts = tuple(read_header(part, lists_of_texts=False) for part in _parts_of(path))
    first = parts[0]
    if first.architecture != ARCHITECTURE:
        raise CheckpointError(_other_architecture(first))
    width = _number(first, "gemma3.embedding_length")
    if mmproj is not None:
        vision = read_header(mmproj)
        if problem := _misfit(vision, width):
            raise CheckpointError(f"{mmproj.name} {problem}. Give the mmproj file of {path.name}.")
        return GgufCheckpoint(parts, vision)
    fitting = list(_fitting(path, width))
    if len({_stem(header.path.name) for header in fitting}) > 1:
        others = ", ".join(header.path.name for header in fitting[1:5])
        logger.warning(
            "%s reads pictures with %s, by its name; %s would fit too. --mmproj names another one.",
            path.name, fitting[0].path.name, others,
        )  # fmt: skip
    return GgufCheckpoint(parts, fitting[0] if fitting else None)


def projector_order(model: str, projector: str) -> tuple[int, int, bool, str]:
    """Sorts the names of mmproj files by how well they suit a model's: the longest shared beginning first, then half
    precision, which the encoder was published in.

    llama.cpp keeps the files of all repositories in one folder, with the repository's name before each file's.
    """
    ours, other = _stem(model), _stem(projector)
    shared = len(os.path.commonprefix([ours, other]))  # noqa: RUF071  characters are meant
    return -shared, len(other) - shared, "f16" not in projector.lower(), projector


def _stem(name: str) -> str:
    """A file's name without its part, its precision and what calls it an mmproj file."""
    name = part[1] if (part := _PART.fullmatch(name)) else name.removesuffix(".gguf")
    return _PRECISION.sub("", _PROJECTOR_WORDS.sub("", name.lower()))


def _fitting(model: Path, width: int) -> Iterator[Header]:
    """The mmproj files beside a model of this width that fit it, the most likely one first."""
    for path in sorted(_others_in(model.parent), key=lambda path: projector_order(model.name, path.name)):
        if _architecture_or_none(path) != VISION_ARCHITECTURE:
            continue
        try:
            header = read_header(path)
        except CheckpointError as error:
            logger.warning("%s is passed over: %s", path.name, error)
            continue
        if not _misfit(header, width):
            yield header


def is_later_part(name: str) -> bool:
    """Whether a file of this name is a further part of a split model, which its first part stands for."""
    part = _PART.fullmatch(name)
    return part is not None and int(part[2]) != 1


def holds_models(folder: Path) -> bool:
    """Whether a folder holds GGUF files, and no weights in the Hub's layout."""
    return any(folder.glob("*.gguf")) and not any(folder.glob("*.safetensors"))


def folder_of(checkpoint: GgufCheckpoint) -> Path:
    """The checkpoint's folder, which is made if the cache has none. Raises CheckpointError."""
    files = [_identity(path) for path in checkpoint.paths]
    name = hashlib.sha256(json.dumps([_FORMAT, files]).encode()).hexdigest()[:24]
    folder = _cache_folder() / name
    if (folder / WEIGHTS_FILE).is_file():
        return folder
    texts = _texts(checkpoint)
    texts[WEIGHTS_FILE] = json.dumps({"files": [file[0] for file in files], "text_only": _why_text_only(checkpoint)})
    try:
        with tempfile.TemporaryDirectory(dir=_cache_folder(), prefix=".", ignore_cleanup_errors=True) as unfinished:
            for file, text in texts.items():
                (Path(unfinished) / file).write_text(text, encoding="utf-8")
            os.rename(unfinished, folder)  # an error if another process has made it meanwhile
    except OSError as error:
        if (folder / WEIGHTS_FILE).is_file():  # another process made it meanwhile
            return folder
        raise CheckpointError(
            f"{checkpoint.text.path.name}'s tokenizer could not be unpacked ({error.strerror}). Free some disk "
            "space, or set XDG_CACHE_HOME to a folder that can be written to."
        ) from None
    return folder


def _texts(checkpoint: GgufCheckpoint) -> dict[str, str]:
    """The folder's files by name. Raises CheckpointError, also for metadata of types that no file should have."""
    try:
        contents = _contents(checkpoint)
        return {file: one if isinstance(one, str) else json.dumps(one, indent=1) for file, one in contents.items()}
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        if isinstance(error, Gemma3Error):
            raise
        raise CheckpointError(
            f"{checkpoint.text.path.name} or its mmproj file has metadata of a wrong type. Download it again."
        ) from None


def weights_of(folder: Path) -> list[Path] | None:
    """The GGUF files of a folder that `folder_of` made; None for any other folder. Raises CheckpointError."""
    if folder.parent != _cache_folder() or not (folder / WEIGHTS_FILE).is_file():
        return None
    files = [Path(file) for file in json.loads((folder / WEIGHTS_FILE).read_text(encoding="utf-8"))["files"]]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"No longer there: {', '.join(missing)}. Put the files back, or name another model.")
    return files


def why_text_only(folder: Path) -> str:
    """A sentence that says why a model that could read pictures reads text only; empty for any other."""
    if weights_of(folder) is None:
        return ""
    return str(json.loads((folder / WEIGHTS_FILE).read_text(encoding="utf-8"))["text_only"])


def _why_text_only(checkpoint: GgufCheckpoint) -> str:
    """The 270M and the 1B have no encoder; they are those whose rotary embedding is not scaled."""
    if checkpoint.mmproj is not None or "gemma3.rope.scaling.factor" not in checkpoint.text.metadata:
        return ""
    return (
        f"{checkpoint.text.path.name} reads text only here, because its mmproj file, which reads pictures, is missing. "
        "Put that file beside it, or name it with --mmproj."
    )


@cache
def _cache_folder() -> Path:
    """In the user's cache, or where that can't be written to a folder of this process."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "gemma3_core" / "gguf"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):
        return Path(tempfile.mkdtemp(prefix="gemma3_core-"))
    return folder.resolve()


def _identity(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path.absolute()), status.st_size, status.st_mtime_ns


def _model_in(folder: Path) -> Path:
    """The one model of a folder; of a split one its first part. Raises CheckpointError."""
    named = [path for path in _others_in(folder) if not is_later_part(path.name)]
    models = [path for path in named if _architecture_or_none(path) != VISION_ARCHITECTURE]
    if len(models) == 1:
        return models[0]
    if not models:
        raise CheckpointError(f"{folder.name} holds no GGUF model file. Give the file itself.")
    listed = ", ".join(path.name for path in models[:8])
    raise CheckpointError(f"{folder.name} holds {len(models)} GGUF models: {listed}. Name one of the files.")


def _others_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.gguf") if is_gguf(path))


def _architecture_or_none(path: Path) -> str | None:
    try:
        return read_architecture(path)
    except CheckpointError:  # a damaged file beside the one that was asked for
        return None


def _parts_of(path: Path) -> list[Path]:
    """The files of a split model, or the file itself. Raises CheckpointError for a missing part."""
    part = _PART.fullmatch(path.name)
    if part is None:
        return [path]
    stem, number, total = part[1], int(part[2]), int(part[3])
    if number != 1:
        raise CheckpointError(
            f"{path.name} is part {number} of {total}. Give the first part; the others lie beside it."
        )
    paths = [path.with_name(f"{stem}-{one:05d}-of-{total:05d}.gguf") for one in range(1, total + 1)]
    if missing := [one.name for one in paths if not one.is_file()]:
        raise CheckpointError(f"Missing beside {path.name}: {', '.join(missing[:8])}. Download all {total} parts.")
    return paths


def _other_architecture(header: Header) -> str:
    name, kind = header.path.name, header.architecture
    if kind == VISION_ARCHITECTURE:
        return f"{name} is the mmproj file of a model, which reads its pictures. Give the model's own file."
    return f"{name} is a model of the architecture {kind[:40]!r}; this program runs Gemma 3 ({ARCHITECTURE!r})."


def _misfit(vision: Header, width: int) -> str:
    """Why an mmproj file does not belong to a decoder of this width; empty if it does."""
    if vision.architecture != VISION_ARCHITECTURE:
        return f"is no mmproj file, but a model of the architecture {vision.architecture[:40]!r}"
    kind = vision.metadata.get("clip.projector_type", vision.metadata.get("clip.vision.projector_type"))
    if not isinstance(kind, str) or kind != ARCHITECTURE:
        return f"belongs to another kind of model ({str(kind)[:40]!r})"
    projection = vision.tensors.get("mm.input_projection.weight")
    if projection is None or len(projection.shape) != 2 or projection.shape[1] != width:
        got = "no" if projection is None else str(projection.shape[-1])
        return f"belongs to a model of another size ({got} features, where this one has {width})"
    return ""


def _value(header: Header, key: str, default: Any = None) -> Any:
    value = header.metadata.get(key, default)
    if value is None:
        raise CheckpointError(f"{header.path.name} does not say {key}. Download it again, or choose another file.")
    return value


def _number(header: Header, key: str, default: int | None = None) -> int:
    value = _value(header, key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise CheckpointError(
            f"{header.path.name} says {key} is {str(value)[:40]}, which is no size. Download it again."
        )
    return value


def _contents(checkpoint: GgufCheckpoint) -> dict[str, Any]:
    """The files of the folder by name: texts, or objects of JSON."""
    text, vision = read_header(checkpoint.text.path), checkpoint.mmproj
    tokens = [str(token) for token in _list(text, "tokenizer.ggml.tokens")]
    config = _config(checkpoint, text, tokens)
    decoder = config.get("text_config", config)
    files: dict[str, Any] = {
        "generation_config.json": {
            **_SAMPLING,
            "bos_token_id": decoder["bos_token_id"],
            "pad_token_id": decoder["pad_token_id"],
            "eos_token_id": decoder["eos_token_id"],
        },
        "tokenizer.json": _tokenizer(text, tokens, with_images=vision is not None),
        "tokenizer_config.json": _tokenizer_config(text, tokens),
        "config.json": config,
    }
    template = text.metadata.get("tokenizer.chat_template")
    if template and text.metadata.get("general.finetune") != "pt":  # a base model was not trained on it
        files["chat_template.jinja"] = str(template)
    if vision is not None:
        files["preprocessor_config.json"] = _image_config(vision, _tokens_per_image(vision))
    return files


def config_of(checkpoint: GgufCheckpoint) -> dict[str, Any]:
    """The checkpoint's config.json, without unpacking its tokenizer. Raises CheckpointError."""
    text = read_header(checkpoint.text.path)
    return _config(checkpoint, text, [str(token) for token in _list(text, "tokenizer.ggml.tokens")])


def _config(checkpoint: GgufCheckpoint, text: Header, tokens: Sequence[str]) -> dict[str, Any]:
    ids = {token: number for number, token in enumerate(tokens)}
    stops = _stop_ids(text, ids)
    config, vision = _text_config(checkpoint, len(tokens), stops), checkpoint.mmproj
    shared = {"dtype": _dtype(checkpoint), **_quantization(checkpoint)}
    if vision is None:
        return {**config, **shared, "architectures": ["Gemma3ForCausalLM"]}
    return {
        **shared,
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": config,
        "vision_config": _vision_config(vision),
        "mm_tokens_per_image": _tokens_per_image(vision),
        "boi_token_index": _id_of("<start_of_image>", ids, text),
        "eoi_token_index": _id_of("<end_of_image>", ids, text),
        "image_token_index": ids.get(IMAGE_TOKEN, len(tokens)),
        "eos_token_id": stops,
        "tie_word_embeddings": config["tie_word_embeddings"],
    }


def _tokens_per_image(vision: Header) -> int:
    per_side = _number(vision, "clip.vision.image_size") // max(1, _number(vision, "clip.vision.patch_size"))
    return (per_side // max(1, _number(vision, "clip.vision.projector.scale_factor", 4))) ** 2


def _text_config(checkpoint: GgufCheckpoint, num_tokens: int, stops: list[int]) -> dict[str, Any]:
    """The decoder's config.json.

    Missing values follow llama.cpp: the pattern of layers, the local rotary base, and the scale of attention,
    which is another one for the 27B with its 62 layers.
    """
    header = checkpoint.text
    layers, width = _number(header, "gemma3.block_count"), _number(header, "gemma3.embedding_length")
    heads = _number(header, "gemma3.attention.head_count")
    head_dim = _number(header, "gemma3.attention.key_length", 256)
    if not 1 <= layers <= _MAX_LAYERS or not heads:
        raise CheckpointError(f"{header.path.name} says it has {layers} layers and {heads} heads. Download it again.")
    embedding = next((t for part in checkpoint.parts if (t := part.tensors.get("token_embd.weight"))), None)
    if embedding is None:
        raise CheckpointError(f"{header.path.name} has no token_embd.weight. Download it again.")
    if embedding.shape[0] < num_tokens:
        raise CheckpointError(
            f"{header.path.name} has {num_tokens:,} tokens, but {embedding.shape[0]:,} embeddings. Download it again."
        )
    factor = header.metadata.get("gemma3.rope.scaling.factor", 1.0)
    return {
        "model_type": "gemma3_text",
        "vocab_size": embedding.shape[0],
        "hidden_size": width,
        "intermediate_size": _number(header, "gemma3.feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _number(header, "gemma3.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": _number(header, "gemma3.context_length"),
        "rms_norm_eps": float(_value(header, "gemma3.attention.layer_norm_rms_epsilon", 1e-6)),
        "query_pre_attn_scalar": width // heads if layers == _LAYERS_OF_27B else head_dim,
        "sliding_window": _number(header, "gemma3.attention.sliding_window"),
        "sliding_window_pattern": _number(header, "gemma3.attention.sliding_window_pattern", 6),
        "rope_theta": float(_value(header, "gemma3.rope.freq_base", 1_000_000.0)),
        "rope_local_base_freq": float(_value(header, "gemma3.rope.freq_base_swa", 10_000.0)),
        "rope_scaling": None if factor == 1.0 else {"rope_type": "linear", "factor": float(factor)},
        "final_logit_softcapping": header.metadata.get("gemma3.final_logit_softcapping"),
        "tie_word_embeddings": not any("output.weight" in part.tensors for part in checkpoint.parts),
        "bos_token_id": header.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": stops,
        "pad_token_id": header.metadata.get("tokenizer.ggml.padding_token_id"),
    }


def _vision_config(header: Header) -> dict[str, Any]:
    names = {
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "image_size": "image_size",
        "patch_size": "patch_size",
    }
    epsilon = float(_value(header, "clip.vision.attention.layer_norm_epsilon", 1e-6))
    sizes = {name: _number(header, f"clip.vision.{key}") for name, key in names.items()}
    return {"model_type": "siglip_vision_model", "vision_use_head": False, "layer_norm_eps": epsilon, **sizes}


def _image_config(header: Header, tokens_per_image: int) -> dict[str, Any]:
    size = _number(header, "clip.vision.image_size")
    return {
        "image_processor_type": "Gemma3ImageProcessor",
        "image_mean": [float(one) for one in _list(header, "clip.vision.image_mean")],
        "image_std": [float(one) for one in _list(header, "clip.vision.image_std")],
        "image_seq_length": tokens_per_image,
        "size": {"height": size, "width": size},
        "resample": 2,
    }


def _list(header: Header, key: str) -> Sequence[Any]:
    value = _value(header, key)
    if isinstance(value, str) or not hasattr(value, "__len__"):
        raise CheckpointError(
            f"{header.path.name} says {key} is {str(value)[:40]}, which is no list. Download it again."
        )
    items: Sequence[Any] = value
    return items


def _stop_ids(header: Header, ids: Mapping[str, int]) -> list[int]:
    """What ends an answer: the end of a text, and where there is a chat template the end of a turn."""
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    stops = [ids.get("<eos>"), *(header.metadata.get(key) for key in keys)]
    if header.metadata.get("tokenizer.chat_template"):
        stops.append(ids.get("<end_of_turn>"))
    return list(dict.fromkeys(stop for stop in stops if isinstance(stop, int)))


def _tokenizer(header: Header, tokens: Sequence[str], with_images: bool) -> str:
    """tokenizer.json. A file with pictures gets the image token, whose place in the vocabulary converters cut off."""
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind != "llama":
        raise CheckpointError(
            f"{header.path.name} has a tokenizer of the kind {str(kind)[:40]!r}, where Gemma 3 has 'llama'. It was "
            "converted without tokenizer.model; choose another file."
        )
    tokenizer = build_tokenizer(
        tokens,
        _list(header, "tokenizer.ggml.scores"),
        _list(header, "tokenizer.ggml.token_type"),
        bos_id=header.metadata.get("tokenizer.ggml.bos_token_id"),
        unk_id=_number(header, "tokenizer.ggml.unknown_token_id", 3),
        add_bos=bool(header.metadata.get("tokenizer.ggml.add_bos_token", True)),
    )
    if with_images and tokenizer.token_to_id(IMAGE_TOKEN) is None:
        tokenizer.add_special_tokens([IMAGE_TOKEN])
    return str(tokenizer.to_str())


def _tokenizer_config(header: Header, tokens: Sequence[str]) -> dict[str, str]:
    """The names of the special tokens whose ids the file gives, but for the end: chat models name that of a turn."""
    keys = {"bos_token": "bos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: header.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {
        name: tokens[number] for name, number in ids.items() if isinstance(number, int) and 0 <= number < len(tokens)
    }


def _id_of(token: str, ids: Mapping[str, int], header: Header) -> int:
    if token not in ids:
        raise CheckpointError(
            f"{header.path.name} has no token {token}, so it reads no pictures. Leave out its mmproj file."
        )
    return ids[token]


def _dtype(checkpoint: GgufCheckpoint) -> str:
    """float32 if all matrices are; quantised weights are dequantised to bfloat16, unless another type is asked for."""
    kinds = {t.kind.name for part in checkpoint.parts for t in part.tensors.values() if len(t.shape) > 1}
    return "float32" if kinds == {"F32"} else "bfloat16"


def _quantization(checkpoint: GgufCheckpoint) -> dict[str, Any]:
    """Layers in Q4_0 are int4 weights; the decoder's other layers are named as those that are not."""
    layers = {
        f"layers.{match[1]}.{DECODER_PARTS[match[2]]}": info
        for part in checkpoint.parts
        for name, info in part.tensors.items()
        if (match := _DECODER_WEIGHT.fullmatch(name)) and DECODER_PARTS.get(match[2], "").endswith("_proj")
    }
    int4 = [name for name, t in layers.items() if t.kind.name == Q4_0 and t.shape[0] % _OUTPUTS_MULTIPLE == 0]
    if not int4:
        return {}
    others = sorted(layers.keys() - set(int4))
    return {
        "quantization_config": {
            "quant_method": "int4_tinygemm",
            "group_size": Q4_0_GROUP_SIZE,
            "modules_to_not_convert": [*others, "lm_head"],
        }
    }
