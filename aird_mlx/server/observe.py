"""What an operator sees: one JSON line per request without its text, and counters for Prometheus."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


@dataclass
class Metrics:
    """The server's own registry; `text` is what ``/metrics`` gives."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        own = self.registry

        def counter(name: str, says: str, *labels: str) -> Counter:
            return Counter(name, says, labels, namespace="aird", registry=own)

        def histogram(name: str, says: str) -> Histogram:
            return Histogram(name, says, namespace="aird", registry=own, buckets=SECONDS)

        self.requests = counter("requests", "Requests by endpoint and HTTP status.", "endpoint", "status")
        self.decisions = counter("decisions", "Answers by what the guard decided.", "decision")
        self.cancelled = counter("cancelled", "Answers that nobody waited for to the end.")
        self.failed = counter("failed", "Answers that an error ended.")
        self.tokens = counter("tokens", "Tokens of prompts and answers.", "kind")
        self.seconds = histogram("answer_seconds", "From request to the answer's end.")
        self.first = histogram("verdict_seconds", "From request to verdict, queue included.")
        self.active = Gauge("active_answers", "Answers being written.", namespace="aird", registry=own)
        self.waiting = Gauge("waiting_requests", "Requests in the queue.", namespace="aird", registry=own)

    def watch(self, load: Callable[[], tuple[int, int]]) -> None:
        """Take the two gauges from here, when they are asked for."""
        self.active.set_function(lambda: load()[0])
        self.waiting.set_function(lambda: load()[1])

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self.registry)


def log_line(stream: TextIO | None, event: str, **values: Any) -> None:
    """One JSON object on one line; ``stream`` None logs nothing."""
    if stream is not None:
        line = {"time": round(time.time(), 3), "event": event} | values
        stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        stream.flush()


def log_stream() -> TextIO:
    """Where logs go."""
    return sys.stderr
