"""An adapter's tensors and a model's modules brought together, or one error that names what does not fit."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from gemma3_core.adapters.config import AdapterConfig, shown_source
from gemma3_core.adapters.facts import AdapterFacts
from gemma3_core.adapters.files import BIAS, EMBEDDING_A, EMBEDDING_B, A, B, StoredAdapter, unwrapped
from gemma3_core.adapters.layers import Adapted, AdaptedEmbedding, AdaptedLinear, AdaptedProjector, LowRank
from gemma3_core.errors import CheckpointError
from gemma3_core.nn.vision import MultiModalProjector

_NAMED_AT_MOST = 8


@dataclass(frozen=True)
class BoundAdapter:
    """An adapter for one model. `low_rank` has the factors by the name of the model's module, `whole` the weights that
    take the place of the model's, by name; those in `followed` take the place of tied ones too."""

    facts: AdapterFacts
    low_rank: Mapping[str, tuple[type[Adapted], LowRank]]
    whole: Mapping[str, nn.Parameter]
    followed: frozenset[str]
    merged: bool = False


@dataclass
class _Problems:
    """What does not fit; each list names tensors as they are in the file."""

    missing: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    not_targets: list[str] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)

    def complaints(self) -> Iterator[str]:
        for what, names in (
            ("missing", self.missing),
            ("not part of this model", self.foreign),
            ("wrong shape", self.misshapen),
            ("not named by target_modules", self.not_targets),
            ("of a kind of layer that takes no adapter here", self.unsupported),
        ):
            if names:
                more = f" and {len(names) - _NAMED_AT_MOST:,} more" if len(names) > _NAMED_AT_MOST else ""
                yield f"{what}: {', '.join(sorted(names)[:_NAMED_AT_MOST])}{more}"


def bind(
    stored: StoredAdapter,
    model: nn.Module,
    our_name: Callable[[str], str],
    their_name: Callable[[str], str],
    model_name: str,
) -> BoundAdapter:
    """`our_name` gives the model's name of a tensor in a file, `their_name` the published one of a tensor of ours.

    Raises CheckpointError.
    """
    problems, config = _Problems(), stored.config
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    low_rank: dict[str, tuple[type[Adapted], LowRank]] = {}
    for name, parts in stored.factors.items():
        module = our_name(f"{name}.weight").removesuffix(".weight")
        kind = _kind(modules.get(module), parts)
        if kind is None and module in modules:
            problems.unsupported += [f"{name}.{part}" for part in parts]
        elif kind is None:
            problems.foreign += [f"{name}.{part}" for part in parts]
        elif not config.has_target(name):
            problems.not_targets += [f"{name}.{part}" for part in parts]
        elif _fits(name, parts, _shapes(modules[module], config.rank(name)), problems):
            a, b = (A, B) if A in parts else (EMBEDDING_A, EMBEDDING_B)
            scale = config.scale(name, parts[a].shape[0])
            factors = LowRank(parts[a], parts[b], scale, parts.get(BIAS))
            if not all(bool(tensor.isfinite().all()) for tensor in factors.parameters()):
                raise CheckpointError(f"{name}.{b} times its scale {scale:g} is infinite. Check lora_alpha.")
            low_rank[module] = kind, factors
    whole, followed = _whole(stored, modules, parameters, our_name, problems)
    _find_missing(stored, modules, whole, our_name, their_name, problems)
    if complaints := list(problems.complaints()):
        base = shown_source(config.base)
        belongs = f"It was trained on {base}; this model is {model_name}."
        if not base:
            belongs = f"Name the model that it was trained on; this is {model_name}."
        raise CheckpointError(f"The adapter {stored.name} does not fit ({'; '.join(complaints)}). {belongs}")
    return BoundAdapter(_facts(stored, low_rank, whole), low_rank, whole, followed)


def _kind(module: nn.Module | None, parts: Mapping[str, torch.Tensor]) -> type[Adapted] | None:
    """The layer that adds these factors to the module; None where there is none."""
    of_embedding = EMBEDDING_A in parts or EMBEDDING_B in parts
    if of_embedding:
        return AdaptedEmbedding if hasattr(module, "embed_scale") else None
    if isinstance(module, MultiModalProjector):
        return AdaptedProjector if BIAS not in parts else None
    return AdaptedLinear if hasattr(module, "in_features") else None


def _shapes(module: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the factors' tensors for a module."""
    if isinstance(module, MultiModalProjector):
        width, out = module.mm_input_projection_weight.shape
        return {A: (rank, out), B: (width, rank)}
    if isinstance(module, nn.Embedding):
        return {EMBEDDING_A: (rank, module.num_embeddings), EMBEDDING_B: (module.embedding_dim, rank)}
    inputs, outputs = module.in_features, module.out_features
    return {A: (rank, inputs), B: (outputs, rank), BIAS: (outputs,)}  # type: ignore[dict-item]


def _fits(
    name: str, parts: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], problems: _Problems
) -> bool:
    wrong = [
        f"{name}.{part} is {list(tensor.shape)}, expected {list(shapes[part])}"
        for part, tensor in parts.items()
        if part in shapes and tuple(tensor.shape) != shapes[part]
    ]
    missing = [f"{name}.{part}" for part in shapes if part != BIAS and part not in parts]
    foreign = [f"{name}.{part}" for part in parts if part not in shapes]
    problems.misshapen += wrong
    problems.missing += missing
    problems.foreign += foreign
    return not wrong and not missing and not foreign


def _whole(
    stored: StoredAdapter,
    modules: Mapping[str, nn.Module],
    parameters: Mapping[str, nn.Parameter],
    our_name: Callable[[str], str],
    problems: _Problems,
) -> tuple[dict[str, nn.Parameter], frozenset[str]]:
    """The whole tensors by the model's names.

    As in peft, a module in modules_to_save gets weights of its own, and any other tensor is put into the base, where a
    tied head follows.
    """
    found: dict[str, nn.Parameter] = {}
    followed: set[str] = set()
    for name, tensor in stored.whole.items():
        ours = our_name(unwrapped(name))
        module = ours.rpartition(".")[0]
        held = parameters.get(ours)
        expected = None if held is None else tuple(held.shape)
        if held is None and ours.endswith(".weight") and hasattr(modules.get(module), "in_features"):
            layer = modules[module]  # with int4 weights, in whose place a layer in full precision comes
            expected = (layer.out_features, layer.in_features)  # type: ignore[assignment]
        if expected is None:
            problems.foreign.append(name)
        elif tuple(tensor.shape) != expected:
            problems.misshapen.append(f"{name} is {list(tensor.shape)}, expected {list(expected)}")
        elif _is_saved(name, stored.config):
            found[ours] = nn.Parameter(tensor, requires_grad=False)
        elif not _is_the_bases_own(name, tensor, held):
            found[ours] = nn.Parameter(tensor, requires_grad=False)
            followed.add(ours)
    return found, frozenset(followed)


def _is_the_bases_own(name: str, tensor: torch.Tensor, held: nn.Parameter | None) -> bool:
    """Whether it is the base's weight, as peft saves that of an embedding or a head beside an adapter of it.

    This cannot be checked for int4 weights, but LoRA trains no weight that it wraps.
    """
    return unwrapped(name) != name if held is None else torch.equal(tensor.to(held.dtype), held.detach().cpu())


def _is_saved(name: str, config: AdapterConfig) -> bool:
    module = f".{name.rpartition('.')[0]}."
    return any(f".{saved}." in module for saved in config.modules_to_save)


def _find_missing(
    stored: StoredAdapter,
    modules: Mapping[str, nn.Module],
    whole: Mapping[str, object],
    our_name: Callable[[str], str],
    their_name: Callable[[str], str],
    problems: _Problems,
) -> None:
    """Modules that the config demands and the file lacks. Not where its tensors belong to another model anyway."""
    if problems.foreign:
        return
    tried = {our_name(f"{name}.weight").removesuffix(".weight") for name in stored.factors}
    for name, module in modules.items():
        names = (name, their_name(f"{name}.weight").removesuffix(".weight"))
        if hasattr(module, "in_features") and name not in tried and stored.config.demands(*names):
            problems.missing.append(f"{name}.{A}")
    complained = " ".join(problems.misshapen)
    for saved in stored.config.modules_to_save:
        held = [name for name in modules if f".{name}".endswith(f".{saved}")]
        has = any(f".{saved}." in f".{name}" for name in whole)
        if held and not has and f"{saved}." not in complained:
            problems.missing.append(f"{held[0]}.weight")


def _facts(
    stored: StoredAdapter, low_rank: Mapping[str, tuple[type[Adapted], LowRank]], whole: Mapping[str, nn.Parameter]
) -> AdapterFacts:
    layers = Counter(map(_part, low_rank))
    tensors = [p for _, factors in low_rank.values() for p in factors.parameters()] + list(whole.values())
    return AdapterFacts(
        name=stored.name,
        base=shown_source(stored.config.base),
        ranks=tuple(sorted({factors.a.shape[0] for _, factors in low_rank.values()})),
        targets=tuple(dict.fromkeys(name.rpartition(".")[2] for name in low_rank)),
        layers=tuple((part, layers[part]) for part in _PARTS.values() if layers[part]),
        replaced=tuple(whole),
        num_parameters=sum(tensor.numel() for tensor in tensors),
        num_bytes=sum(tensor.nbytes for tensor in tensors),
        revision=stored.revision,
        hub_id=stored.hub_id,
    )


_PARTS = {"": "decoder", "vision_tower": "vision tower", "multi_modal_projector": "projector"}


def _part(name: str) -> str:
    return next((part for key, part in _PARTS.items() if key and f"{key}." in f"{name}."), _PARTS[""])
