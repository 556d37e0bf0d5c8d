"""The models of a checkpoint with an adapter on top, in both precisions, beside those of the checkpoint itself."""

import threading
from collections.abc import Iterator

from gemma3_core.adapters.files import StoredAdapter
from gemma3_core.engine.precisions import ModelVariants
from gemma3_core.int4.quantize import count_weights, sharing_copy
from gemma3_core.models.multimodal import Model


class AdaptedVariants:
    """Models of their own that share every weight with those of `base`, int4 weights too, and add an adapter's.

    To the engine they are other models: it decodes theirs and the base's answers side by side. What differs in memory
    are the adapter's own tensors.
    """

    lead = None

    def __init__(self, base: ModelVariants, adapter: StoredAdapter):
        """Raises CheckpointError if the adapter does not fit the base."""
        self._base, self._stored, self._lock = base, adapter, threading.Lock()
        self.default = sharing_copy(base.default)
        self.adapter = self.default.load_adapter(adapter)
        self._models: dict[bool, Model] = {base.default_int4: self.default}
        self.default_int4, self.obstacle, self.left = base.default_int4, base.obstacle, base.left
        self.num_parameters = count_weights(self.default)
        self.full_bytes, self.int4_bytes = (
            num_bytes + self.adapter.num_bytes for num_bytes in (base.full_bytes, base.int4_bytes)
        )

    def require(self, int4: bool) -> None:
        """As of the base."""
        self._base.require(int4)

    def ready(self, int4: bool) -> bool:
        return int4 in self._models

    def prepare(self, int4: bool) -> Iterator[str]:
        """As of the base, whose precision it makes first if it is missing."""
        yield from self._base.prepare(int4)
        with self._lock:
            if not self.ready(int4):
                other = sharing_copy(self._base.model(int4))
                other.load_adapter(self._stored)
                self._models[int4] = other

    def model(self, int4: bool) -> Model:
        """The model of that precision, once it is prepared."""
        return self._models[int4]


AnyVariants = ModelVariants | AdaptedVariants
