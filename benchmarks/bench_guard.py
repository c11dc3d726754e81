"""What the guard of `aird-mlx serve` catches, and what its probe costs.

    python benchmarks/bench_guard.py --sparsity 0.5     # the demo, pruned and not repaired: made here
    python benchmarks/bench_guard.py FILE.gguf --harmful FILE --harmless FILE [--twins FILE]

Prints, of the prompts that the file answers when nothing stops it, how many policy `refuse` stops, and false alarms;
then tokens per second of the same server over HTTP with the probe on and off, by turns in the same run. On a machine
that does other work only the ratio means something.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import aclosing, closing, contextmanager
from pathlib import Path

from aird_mlx.blas import use_openblas

use_openblas()

import httpx  # noqa: E402
import numpy as np  # noqa: E402
import uvicorn  # noqa: E402

from aird_mlx.evaluation import judge_answer, wilson_rate  # noqa: E402
from aird_mlx.prompts import KINDS, read_prompts  # noqa: E402
from aird_mlx.server.app import make_app  # noqa: E402
from aird_mlx.server.checks import CheckedFile, check_file  # noqa: E402
from aird_mlx.server.conversation import make_request, render_conversation  # noqa: E402
from aird_mlx.server.engine import Piece  # noqa: E402
from aird_mlx.server.guard import LOG, REFUSE, REFUSED, Guard, Verdict  # noqa: E402
from aird_mlx.server.service import Service  # noqa: E402
from aird_mlx.server.settings import ServiceSettings, open_guard  # noqa: E402

NEW_TOKENS = 64


def make_pruned(folder: Path, sparsity: float) -> Path:
    """The demo, pruned as stock pruning does it, exported and sealed with a probe of its own; no repair."""
    from aird_mlx.activations import batch_sequences
    from aird_mlx.demo.language import dialogues
    from aird_mlx.gguf_export import export_gguf
    from aird_mlx.guard.canaries import read_canaries, render_canaries
    from aird_mlx.guard.record import PROBE_PROMPTS, CanarySet, make_manifest
    from aird_mlx.guard.seal import seal
    from aird_mlx.inputs import gather_inputs
    from aird_mlx.model import load, save
    from aird_mlx.prompts import render_dialogue, render_prompt
    from aird_mlx.pruning import prune_model

    model = load("demo")
    rows = [render_dialogue(model.tokenizer, *one) for one in dialogues("train", 128, 0, kinds=("harmless",))]
    calibration = batch_sequences([ids for ids, _ in rows], first_answered=[start for _, start in rows])
    prune_model(model, calibration, method="wanda", sparsity=sparsity, pattern="unstructured")
    save(model, folder / "mlx")
    path = export_gguf(folder / "mlx", folder / "pruned.gguf", "f16").path
    contrast = gather_inputs("demo", 0).probe
    parts = [
        {
            kind: [render_prompt(model.tokenizer, one) for one in contrast.part(kind, part)[:PROBE_PROMPTS]]
            for kind in KINDS
        }
        for part in ("find", "validate")
    ]
    canaries = read_canaries("demo")
    rendered = render_canaries(model.tokenizer, [one.prompt for one in canaries])
    dense = "".join("r" if one.kind == "harmful" else "c" for one in canaries)
    manifest = make_manifest(path, {"source.model": "demo"}, *parts, CanarySet("demo", rendered, dense, NEW_TOKENS))
    seal(path, manifest)
    return path


async def ask(guard: Guard, prompt: str, policy: str) -> tuple[Verdict, str]:
    """The verdict and the answer."""
    messages = [{"role": "user", "content": prompt}]
    request = make_request(guard.engine, render_conversation(guard.engine.chat, messages), NEW_TOKENS)
    verdict, text = None, ""
    async with aclosing(guard.answer(request, messages, policy)) as stream:
        async for event in stream:
            verdict = event if isinstance(event, Verdict) else verdict
            text += event.text if isinstance(event, Piece) else ""
    assert verdict is not None
    return verdict, text


async def ask_all(guard: Guard, prompts: list[str], policy: str) -> list[tuple[Verdict, str]]:
    """All prompts, a few side by side."""
    places = asyncio.Semaphore(guard.engine.parallel)

    async def one(prompt: str) -> tuple[Verdict, str]:
        async with places:
            return await ask(guard, prompt, policy)

    return list(await asyncio.gather(*map(one, prompts)))


def show_rate(words: str, count: int, n: int) -> None:
    """A share with its interval."""
    rate = wilson_rate(count, n)
    said = (
        "nothing to count"
        if rate is None
        else f"{100 * rate.rate:5.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
    )
    print(f"{words:<58} {count:>4} of {n:<4} {said}")


def measure_guard(checked: CheckedFile, prompts: dict[str, list[str]]) -> None:
    """What the policy does on each kind of prompt."""
    with closing(open_guard(checked, ServiceSettings(policy=LOG))) as guard:
        found = {}
        for policy in (LOG, REFUSE):
            found[policy] = {kind: asyncio.run(ask_all(guard, prompts[kind], policy)) for kind in KINDS}
    for kind in KINDS:
        free, guarded = found[LOG][kind], found[REFUSE][kind]
        answered = [at for at, (_, text) in enumerate(free) if judge_answer(text) != "refusal"]
        stopped = sum(guarded[at][0].decision == REFUSED for at in answered)
        show_rate(f"{kind}: answered when nothing stops it", len(answered), len(free))
        if kind == "harmful":
            show_rate("  of these, stopped by policy refuse", stopped, len(answered))
            left = sum(judge_answer(text) != "refusal" for _, text in guarded)
            show_rate("harmful: answered under policy refuse", left, len(free))
        else:
            show_rate("  alarms of the probe", sum(verdict.alarm for verdict, _ in guarded), len(free))


@contextmanager
def serving(checked: CheckedFile, probe: bool) -> Iterator[str]:
    """A server on a free port, with its probe or without."""
    assert checked.manifest is not None
    without = dataclasses.replace(checked.manifest, probe=None, no_probe="it was left out")
    served = checked if probe else dataclasses.replace(checked, manifest=without)
    service = Service(served, ServiceSettings(policy=LOG))
    with closing(service):
        server = uvicorn.Server(uvicorn.Config(make_app(service), port=0, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1/chat/completions"
        finally:
            server.should_exit = True
            thread.join()


def ask_over_http(url: str, prompts: list[str], clients: int) -> tuple[int, float]:
    """Tokens that all clients together got, not streamed, and seconds; runs in a process of its own."""
    with httpx.Client(timeout=600) as http:

        def one(prompt: str) -> int:
            body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": NEW_TOKENS}
            return int(http.post(url, json=body).raise_for_status().json()["usage"]["completion_tokens"])

        with ThreadPoolExecutor(clients) as pool:
            started = time.perf_counter()
            return sum(pool.map(one, prompts)), time.perf_counter() - started


def measure_cost(checked: CheckedFile, prompts: list[str], rounds: int) -> None:
    """Speed with the probe and without, by turns."""
    spawning = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=spawning) as process,
        serving(checked, True) as on,
        serving(checked, False) as off,
    ):
        for clients in (1, 4):
            speeds: dict[str, list[float]] = {on: [], off: []}
            costs: dict[str, list[float]] = {on: [], off: []}
            for turn in range(2 * rounds + 2):
                url = (on, off)[(turn + turn // 2) % 2]  # on off off on: drift hits both alike
                busy = time.process_time()
                tokens, seconds = process.submit(ask_over_http, url, prompts, clients).result()
                if turn >= 2:
                    speeds[url].append(tokens / seconds)
                    costs[url].append(1000 * (time.process_time() - busy) / tokens)
            for words, found in (("tokens/s", speeds), ("ms of processor time per token", costs)):
                middle = [statistics.median(found[url]) for url in (on, off)]
                ratio, low, high = paired_ratio(found[on], found[off])
                print(
                    f"{clients} client{'s' * (clients > 1)}, {words}: {middle[0]:.2f} with the probe, {middle[1]:.2f} "
                    f"without; {ratio - 1:+.1%} [{low - 1:+.1%}, {high - 1:+.1%}] over {rounds} pairs of rounds"
                )


def paired_ratio(one: list[float], other: list[float]) -> tuple[float, float, float]:
    """The median of the ratios of rounds that followed each other, with its bootstrap interval of 95 %."""
    ratios = np.array(one) / np.array(other)
    draws = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    for kind in ("harmful", "harmless", "twins"):
        parser.add_argument(f"--{kind}", type=Path)
    parser.add_argument("--sparsity", type=float, default=0.7, help="of the demo, where no file is given")
    parser.add_argument("--limit", type=int, default=300, help="prompts of each kind")
    parser.add_argument("--rounds", type=int, default=80, help="of the timing, each 16 prompts")
    parser.add_argument("--only-cost", action="store_true", help="measure no guard")
    options = parser.parse_args()
    from aird_mlx.demo.language import prompts as demo_prompts

    files = {"harmful": options.harmful, "harmless": options.harmless, "twin": options.twins}
    asked = {
        kind: (demo_prompts(kind, "test", options.limit, 11) if path is None else read_prompts(path)[: options.limit])
        for kind, path in files.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or make_pruned(Path(folder), options.sparsity)
        checked = check_file(path, allow_unverified=True)
        assert checked.manifest is not None and checked.manifest.probe is not None, "a file with a probe is needed"
        probe = checked.manifest.probe
        print(f"{path.name}: probe of layers {list(probe.layers)}, last {probe.tokens} tokens, AUC {probe.auc:.3f}")
        if not options.only_cost:
            measure_guard(checked, asked)
        measure_cost(checked, asked["harmless"][:16], options.rounds)


if __name__ == "__main__":
    main()
