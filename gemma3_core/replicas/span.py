"""A replica that spans several processes: each has a bundle of the replica's placement group to itself."""

from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from gemma3_core.parallel.processes import Seat, follow


class _Following:
    """What Ray starts for a share; it ends with its replica."""

    def follow(self, seat: Seat) -> None:
        follow(seat)


class _Started:
    def __init__(self, seat: Seat):
        group = ray.util.get_current_placement_group()
        assert group is not None
        bundle = group.bundle_specs[seat.rank]
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=seat.rank)
        resources = {"num_cpus": bundle.get("CPU", 0), "num_gpus": bundle.get("GPU", 0)}
        kind: Any = ray.remote(_Following)
        self._actor = kind.options(**resources, scheduling_strategy=strategy).remote()
        self._work = self._actor.follow.remote(seat)

    def poll(self) -> bool | None:
        ready, _ = ray.wait([self._work], timeout=0)
        return bool(ready) or None


class RayProcesses:
    """Starts the other processes of the replica that runs here, on this machine or beside it."""

    def __init__(self) -> None:
        self.host = ray.util.get_node_ip_address()

    def check(self, size: int, device: str) -> None:
        """The placement group has room for them."""

    def __call__(self, seat: Seat) -> _Started:
        return _Started(seat)
