"""What an adapter is, for people: name, rank, targets, size."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterFacts:
    """`base` is the folder's name or Hub id that the adapter was trained on, empty where unknown. `ranks` are the
    different ranks, smallest first. `targets` are the last parts of the changed layers' names ("q_proj"), `layers` how
    many of them are in each part of the model ("decoder", "vision tower", "projector"). `replaced` names the weights
    that the adapter holds whole. `num_parameters` and `num_bytes` count what the adapter adds in memory. `merged` says
    that it is part of the weights. `revision` tells two adapters of one name apart; `hub_id` is empty for one from a
    folder.
    """

    name: str
    base: str
    ranks: tuple[int, ...]
    targets: tuple[str, ...]
    layers: tuple[tuple[str, int], ...]
    replaced: tuple[str, ...]
    num_parameters: int
    num_bytes: int
    merged: bool = False
    revision: str = ""
    hub_id: str = ""
