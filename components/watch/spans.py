"""Spans for OpenTelemetry, by its own packages (requirements/watch.txt): a question, and the parts of its time."""

from typing import Any

from components.watch.record import Record
from gemma3_core.engine import Gemma3Error

MISSING = "--trace-to needs packages that are not installed. Install them with: pip install -r requirements/watch.txt"
_NS = 1_000_000_000


class Spans:
    """A watcher that makes the spans of each question at its end.

    They go to `provider`, a TracerProvider, or over HTTP to `endpoint`, which is a collector's address such as
    `http://127.0.0.1:4318/v1/traces`. Attributes are named as in OpenTelemetry's conventions for generative AI. Raises
    Gemma3Error without the packages.
    """

    def __init__(self, endpoint: str = "", provider: Any = None):
        try:
            from opentelemetry import trace
            from opentelemetry.context import Context
        except ImportError:
            raise Gemma3Error(MISSING) from None
        self._trace, self._context = trace, Context
        self.provider = _exporting(endpoint) if provider is None else provider
        self._tracer = self.provider.get_tracer("gemma3")

    def __call__(self, record: Record) -> None:
        status, tracer = self._trace.Status, self._tracer
        question = tracer.start_span(
            "question", context=self._context(), start_time=_ns(record.began), attributes=_attributes(record)
        )
        if record.outcome == "failed":
            question.set_status(status(self._trace.StatusCode.ERROR))
        within = self._trace.set_span_in_context(question, self._context())
        for stage in record.stages:
            tracer.start_span(stage.name, context=within, start_time=_ns(stage.began)).end(_ns(stage.ended))
        question.end(_ns(record.ended))


def _exporting(endpoint: str) -> Any:
    """A provider that sends spans to a collector, in a thread of its own and in bunches."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise Gemma3Error(MISSING) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "gemma3"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


def _attributes(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = {
        "gen_ai.request.model": record.model,
        "gemma3.door": record.door,
        "gemma3.outcome": record.outcome,
        "gemma3.pictures": record.pictures,
    }
    if record.reason:
        found["gemma3.reason"] = record.reason
    if (stats := record.stats) is not None:
        found |= {
            "gen_ai.usage.input_tokens": stats.prompt_tokens,
            "gen_ai.usage.output_tokens": stats.new_tokens,
            "gemma3.reused_tokens": stats.reused_tokens,
        }
    return found


def _ns(seconds: float) -> int:
    return round(seconds * _NS)
