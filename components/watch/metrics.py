"""Figures of the questions for Prometheus, by its own package (requirements/watch.txt)."""

from collections.abc import Callable, Iterator
from typing import Any

from starlette.types import ASGIApp

from components.watch.record import Record
from gemma3_core.engine import Gemma3Error, Usage

MISSING = "--metrics needs a package that is not installed. Install it with: pip install -r requirements/watch.txt"

_SHORT_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LONG_S = (0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_PER_TOKEN_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)


class Metrics:
    """Counts what a watcher is told, and serves it as an ASGI app. Labels have few values, none of them a visitor's.

    Raises Gemma3Error without the package.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client import (
                CollectorRegistry,
                Counter,
                Histogram,
                ProcessCollector,
                disable_created_metrics,
                make_asgi_app,
            )
        except ImportError:
            raise Gemma3Error(MISSING) from None
        disable_created_metrics()  # a further value of each counter, which no query needs
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def counter(name: str, told: str, *labels: str) -> Any:
            return Counter(f"gemma3_{name}", told, labels, registry=self.registry)

        def seconds(name: str, told: str, *buckets: float) -> Any:
            return Histogram(f"gemma3_{name}_seconds", told, ["model"], buckets=buckets, registry=self.registry)

        self._questions = counter("questions", "Questions by how they ended.", "door", "model", "outcome")
        self._refusals = counter("refusals", "Questions that were not answered, and why.", "door", "reason")
        self._requests = counter("refused_requests", "Requests that were refused, by HTTP status.", "status")
        self._tokens = counter("tokens", "Tokens of prompts read, reused from a cache, and written.", "model", "kind")
        self._pictures = counter("pictures", "Pictures and crops that answers were about.", "model", "kind")
        self._queue = seconds("queue_wait", "From the question to the beginning of its answer.", *_SHORT_S)
        self._first = seconds("time_to_first_token", "From leaving the queue to the first token.", *_SHORT_S)
        self._answer = seconds("answer", "From the question to its answer's end.", *_LONG_S)
        self._token = seconds("decode_token", "Of one token, once the first is there.", *_PER_TOKEN_S)
        self.app: ASGIApp = make_asgi_app(registry=self.registry)

    def follow(self, usage: Callable[[], Usage], is_ready: Callable[[], bool]) -> None:
        """Adds what the models hold and do, asked each time that the figures are read."""
        self.registry.register(_UsageCollector(usage, is_ready))

    def refused_request(self, status: int) -> None:
        """Counts a request that never became a question."""
        self._requests.labels(str(status)).inc()

    def __call__(self, record: Record) -> None:
        """Counts a question at its end."""
        model, stats = record.model, record.stats
        self._questions.labels(record.door, model, record.outcome).inc()
        if record.reason:
            self._refusals.labels(record.door, record.reason).inc()
        if record.outcome == "refused" or record.door == "inside":
            return
        self._answer.labels(model).observe(record.ended - record.began)
        if stats is None:
            return
        self._tokens.labels(model, "prompt").inc(stats.prompt_tokens - stats.reused_tokens)
        self._tokens.labels(model, "reused").inc(stats.reused_tokens)
        self._tokens.labels(model, "written").inc(stats.new_tokens)
        self._pictures.labels(model, "picture").inc(record.pictures)
        self._pictures.labels(model, "crop").inc(stats.num_crops)
        self._queue.labels(model).observe(stats.queue_s)
        if stats.time_to_first_token_s is not None:
            self._first.labels(model).observe(stats.time_to_first_token_s)
        if stats.tokens_per_s:
            self._token.labels(model).observe(1 / stats.tokens_per_s)


class _UsageCollector:
    """Gauges whose values are asked for at each reading."""

    def __init__(self, usage: Callable[[], Usage], is_ready: Callable[[], bool]):
        self._usage, self._is_ready = usage, is_ready

    def describe(self) -> list[Any]:
        """Nothing: registering must not ask the models."""
        return []

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        usage = self._usage()
        for name, told, value in (
            ("answers_running", "Answers that are being written.", usage.running),
            ("questions_waiting", "Questions in the queue.", usage.waiting),
            ("slots", "Answers that can be written at once.", usage.slots),
            ("cache_bytes", "Memory of the caches kept for next questions.", usage.cache_bytes),
            ("ready", "1 if new questions are taken, 0 before a restart.", int(self._is_ready())),
        ):
            yield GaugeMetricFamily(f"gemma3_{name}", told, value)
        device = GaugeMetricFamily("gemma3_device_bytes", "Memory of the GPU.", labels=["kind"])
        for kind, num_bytes in usage.device_bytes.items():
            device.add_metric([kind], num_bytes)
        yield device
        loaded = GaugeMetricFamily("gemma3_model_loaded", "Models in memory.", labels=["model"])
        for model in usage.models:
            loaded.add_metric([model], 1)
        yield loaded
