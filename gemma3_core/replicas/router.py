"""Which replica a question goes to: the one that holds the visitor's KV cache, unless it is overloaded.

Serve runs this in the process of the page in front and sends it there by value, so it imports nothing of ours.
"""

from collections import OrderedDict
from hashlib import blake2b
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

MOST_REMEMBERED = 10_000


class VisitorRouter(RequestRouter):
    """Ranks the replicas for each request by its `session_id` and `multiplexed_model_id`.

    The visitor's last replica comes first while it has an answer's place free. The others follow: those with the
    model in memory before those that would load it, the emptier before the fuller, and equal ones in an order of the
    visitor's own, which another page in front computes alike. `VISITOR/1` is a visitor whose last replica was lost: it
    comes last.
    """

    def initialize_state(self, at_once: int = 8, **_: Any) -> None:
        self._at_once = at_once
        self._last: OrderedDict[str, ReplicaID] = OrderedDict()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        visitor, _, lost = pending_request.metadata.session_id.partition("/")
        model = pending_request.metadata.multiplexed_model_id
        last = self._last.get(visitor)

        def key(replica: RunningReplica) -> tuple[bool, bool, bool, int, bytes]:
            load = self.replica_queue_len_cache.get(replica.replica_id)
            if load is None:  # too old; the replica itself tells less often
                load = replica.routing_stats.get("running", 0)
            is_last = last is not None and replica.replica_id == last
            lacks_model = bool(model) and model not in replica.routing_stats.get("models", (model,))
            own_order = blake2b(f"{visitor}\0{replica.replica_id.unique_id}".encode(), digest_size=8).digest()
            returns = is_last and not lost and load < self._at_once
            return bool(is_last and lost), not returns, lacks_model, load, own_order

        return [[replica] for replica in sorted(candidate_replicas, key=key)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:  # noqa: ARG002
        visitor, _, _ = pending_request.metadata.session_id.partition("/")
        if visitor:
            self._last[visitor] = replica_id
            self._last.move_to_end(visitor)
            while len(self._last) > MOST_REMEMBERED:
                self._last.popitem(last=False)
