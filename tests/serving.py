"""Files to serve and servers to ask: the demo with a manifest of its own, and uvicorn in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from aird_mlx.activations import batch_sequences
from aird_mlx.demo.language import dialogues, prompts
from aird_mlx.gguf_export import export_gguf
from aird_mlx.guard.canaries import read_canaries, render_canaries
from aird_mlx.guard.record import CanarySet, make_manifest
from aird_mlx.guard.seal import seal
from aird_mlx.model import ChatModel, load, save
from aird_mlx.prompts import KINDS, render_dialogue, render_prompt
from aird_mlx.pruning import prune_model
from aird_mlx.server.checks import CheckedFile, check_file
from aird_mlx.server.engine import Engine
from aird_mlx.server.settings import ServiceSettings


def sealed_demo(folder: Path, model: ChatModel | None = None) -> Path:
    """The demo, or what was made of it, as a GGUF file with a probe and canaries fitted on itself."""
    model = model or load("demo")
    save(model, folder / "mlx")
    path = export_gguf(folder / "mlx", folder / "demo.gguf", "f16").path
    parts = {
        part: {kind: [render_prompt(model.tokenizer, one) for one in prompts(kind, part, count, 0)] for kind in KINDS}
        for part, count in (("train", 96), ("validation", 64))
    }
    canaries = read_canaries("demo")
    rendered = render_canaries(model.tokenizer, [one.prompt for one in canaries])
    dense = "".join("r" if one.kind == "harmful" else "c" for one in canaries)
    asked = CanarySet("demo", rendered, dense, 32)
    seal(path, make_manifest(path, {"source.model": "demo"}, parts["train"], parts["validation"], asked))
    return path


def pruned_demo() -> ChatModel:
    """The demo pruned to 0.7 as stock pruning does it, not repaired: it answers much of what it should refuse."""
    model = load("demo")
    rows = [render_dialogue(model.tokenizer, *one) for one in dialogues("train", 128, 0, kinds=("harmless",))]
    calibration = batch_sequences([ids for ids, _ in rows], first_answered=[start for _, start in rows])
    prune_model(model, calibration, method="wanda", sparsity=0.7, pattern="unstructured")
    return model


def checked_demo(path: Path) -> CheckedFile:
    """It, found fit to be served."""
    return check_file(path, allow_unverified=True)


@dataclass
class Running:
    """A server that answers at ``url`` with an engine; ``log`` is what it logged so far."""

    url: str
    engine: Engine
    log: StringIO


@contextmanager
def running(checked: CheckedFile, settings: ServiceSettings | None = None) -> Iterator[Running]:
    """A server in a thread, on a free port."""
    import uvicorn

    from aird_mlx.server.app import make_app
    from aird_mlx.server.service import Service

    log = StringIO()
    service = Service(checked, settings or ServiceSettings(), log)
    with closing(service):
        config = uvicorn.Config(
            make_app(service), port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        try:
            port = server.servers[0].sockets[0].getsockname()[1]
            yield Running(f"http://127.0.0.1:{port}", service.engine, log)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive(), "the server did not stop"
