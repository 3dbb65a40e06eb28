"""What the vote loop makes of a device: its share of a bare loop's rate, by network, way to vote and size of requests.

    python -m tests.bench.gpu_votes --seconds 150 --out votes.json        # on a GPU
    python -m tests.bench.gpu_votes --device cpu --tiny --seconds 50 --out votes.json

First it checks whether votes come out the same again, in another order and in other company; then it times pairs of a
bare loop and the vote loop. A bare loop calls the network on the same rows again and again, and a pass of label
gradients counts for what a bare loop of such passes takes. With the network "none", which computes next to nothing, a
pass takes as long as the loop itself; elsewhere "host ms" includes the time that the host waits to launch more.

Needs torch, numpy, scipy, safetensors, jaxtyping and click. Networks have random weights: near-ties are as frequent as
they can be.
"""

import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from ndc_core.classifiers.diffusion import DiffusionClassifier
from ndc_core.models import forward_passes as passes
from ndc_core.models.execution import DTYPES, Execution
from ndc_core.noise.draw_generators import draw_key, input_generator
from ndc_core.noise.smoothing import NOISES
from ndc_core.noise.step_streams import REFINE, StepStreams
from ndc_core.vote_requests import VoteRequest
from ndc_core.voting import stream_votes
from tests.bench.ways_to_vote import RACE, Bench, Way, ways

WARM_SECONDS, WINDOW_SECONDS, BARE_SECONDS = 0.8, 1.6, 0.4
FEWEST_PASSES = 8  # of a window, after as many that are not counted


class EnoughError(BaseException):
    """Ends a measurement; it is not a failure of a task."""


@dataclass
class Window:
    """The passes that a vote loop launched during a window of its steady state."""

    rows: Counter[str] = field(default_factory=Counter)
    passes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    host_seconds: float = 0.0


def endless_requests(shape: tuple[int, ...], request: int) -> Iterator[tuple[int, VoteRequest]]:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    number = 0
    while True:
        yield number, VoteRequest(image, f"x{number}", (0.25,), "integer", 0, "estimation", range(request))
        number += 1


def vote_window(
    classifier: DiffusionClassifier, request: int, *, warm: float, seconds: float, passes_each: int
) -> Window:
    """Votes for a while, counts rows from when it is warm, and stops."""
    counted, own = Window(), passes._Gatherer._evaluate
    launched, marks = 0, list[tuple[float, float]]()
    begins = time.perf_counter() + warm

    def evaluate(gatherer: Any, parts: Any) -> Any:
        nonlocal launched
        launched += 1
        now = time.perf_counter()
        if marks or (now > begins and launched > passes_each):
            marks.append((now, time.thread_time()))
            if now > marks[0][0] + seconds and len(marks) > passes_each:
                raise EnoughError
            counted.rows[parts[0][0].kind] += sum(window.stop - window.start for _, window in parts)
            counted.passes[parts[0][0].kind] += 1
        return own(gatherer, parts)

    passes._Gatherer._evaluate = evaluate  # type: ignore[method-assign]
    requests = endless_requests(classifier.image_shape, request)
    try:
        for _, counts in stream_votes(classifier, lambda: next(requests)):
            if isinstance(counts, Exception):
                raise counts
    except EnoughError:
        pass
    finally:
        passes._Gatherer._evaluate = own  # type: ignore[method-assign]
    counted.seconds, counted.host_seconds = (last - first for first, last in zip(marks[0], marks[-1], strict=True))
    return counted


def measured(bench: Bench, way: Way) -> dict[str, Any]:
    """The vote loop between two bare loops."""
    classifier = bench.classifier(way)
    tiny = bench.tiny
    bare = {
        kind: [bench.bare_rate(classifier, kind, seconds=0.02 if tiny else BARE_SECONDS)]
        for kind, _ in classifier.passes
    }
    window = vote_window(
        classifier,
        way.request,
        warm=0.0 if tiny else WARM_SECONDS,
        seconds=0.05 if tiny else WINDOW_SECONDS,
        passes_each=2 if tiny else FEWEST_PASSES,
    )
    bench.synchronize()
    for kind, rates in bare.items():
        rates.append(bench.bare_rate(classifier, kind, seconds=0.02 if tiny else BARE_SECONDS))
    rate = {kind: sum(rates) / 2 for kind, rates in bare.items()}
    passes_done, rows_done = sum(window.passes.values()), sum(window.rows.values())
    return {
        "network": way.network,
        "way": way.name,
        "rows_per_pass": classifier.rows_per_pass,
        "draws_a_request": way.request,
        "share": sum(rows / rate[kind] for kind, rows in window.rows.items()) / window.seconds,
        "rows_per_second": rows_done / window.seconds,
        "full": rows_done / (passes_done * classifier.rows_per_pass),
        "host_ms_a_pass": 1e3 * window.host_seconds / passes_done,
        "ms_a_pass": 1e3 * window.seconds / passes_done,
        "bare": rate,
        "rows": dict(window.rows),
    }


def correctness(bench: Bench, way: Way) -> dict[str, Any]:
    """How many of the same votes differ when drawn again, in another order, and in other company."""
    classifier, draws = bench.classifier(way), 1 if bench.tiny else 10
    requests = endless_requests(classifier.image_shape, draws)
    repeated = [next(requests) for _ in range(4 if bench.tiny else 8)]

    def votes(waiting_requests: list[tuple[int, VoteRequest]]) -> dict[int, np.ndarray]:
        waiting, votes_by_number = deque(waiting_requests), {}
        for number, counts in stream_votes(classifier, lambda: waiting.popleft() if waiting else None):
            if isinstance(counts, Exception):
                raise counts
            votes_by_number[number] = counts[0].votes
        return votes_by_number

    first = votes(repeated)

    def differ(other: dict[int, np.ndarray]) -> int:
        return sum(int(np.abs(first[number] - other[number]).sum()) // 2 for number in first if number in other)

    return {
        "network": way.network,
        "way": way.name,
        "votes": len(repeated) * draws,
        "again": differ(votes(repeated)),
        "order": differ(votes(repeated[::-1])),
        "company": differ(votes(repeated[:2] + [next(requests) for _ in range(3)])),
    }


def noise_rates(bench: Bench, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Draws a second: of the input's noise by threads of the host, and of seven steps' on the device."""
    law, draws, rates = NOISES["integer"](0.25), 4 if bench.tiny else 64, []
    keys = [draw_key(seed=0, image_id="a", phase="estimation", draw=draw) for draw in range(draws)]

    def rate(work: Callable[[], object]) -> float:
        work()
        bench.synchronize()
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < 0.2:
            work()
            bench.synchronize()
            done += draws
        return done / (time.perf_counter() - started)

    for threads in sorted({1, 2, 4, 8, 16} & set(range(1, (os.cpu_count() or 1) + 1))):
        with ThreadPoolExecutor(threads) as pool:
            inputs = rate(lambda: list(pool.map(lambda key: law.draw(input_generator(key), shape), keys)))
        rates.append({"noise": list(shape), "host_threads": threads, "inputs": inputs})
    streams = StepStreams(keys, 7, shape, REFINE)
    return [
        *rates,
        {"noise": list(shape), "device": bench.device, "seven_steps": rate(lambda: streams.all(bench.device))},
    ]


def hidden_waits(bench: Bench, way: Way) -> dict[str, Any]:
    """Where the loop waits for the device without saying so."""
    classifier = bench.classifier(way)
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            window = vote_window(classifier, 50, warm=0.0, seconds=0.5, passes_each=4)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    at = Counter(f"{warning.filename}:{warning.lineno}" for warning in caught if "synchroniz" in str(warning.message))
    return {
        "way": way.name,
        "hidden_waits": sum(at.values()),
        "passes": sum(window.passes.values()),
        "at": dict(at.most_common(6)),
    }


ACTOR_WAY = ("7 M", "race", {"race": RACE})


def actors_rate(bench: Bench, count: int, rows: int) -> dict[str, Any]:
    """Several processes on one device, measured at the same time."""
    tiny = ["--tiny"] if bench.tiny else []
    command = [sys.executable, "-m", "tests.bench.gpu_votes", "--device", bench.device, *tiny]
    command += ["--actor-rows", str(rows), "--precision", bench.execution.precision]
    command += ["--channels-last" if bench.execution.channels_last else "--no-channels-last"]
    bench.networks.clear()
    if bench.device == "cuda":
        torch.cuda.empty_cache()
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    rates = [float(process.communicate()[0]) for process in started]
    return {"actors": count, "rows_per_pass": bench.rows(rows), "rows_per_second": sum(rates)}


def be_an_actor(bench: Bench, rows: int) -> None:
    classifier = bench.classifier(Way(*ACTOR_WAY, rows=rows, request=50))
    vote_window(classifier, 50, warm=0.0, seconds=0.0, passes_each=2)
    click.echo("ready")
    sys.stdin.readline()
    warm, seconds = (0.0, 0.1) if bench.tiny else (1.5, 3.0)
    window = vote_window(classifier, 50, warm=warm, seconds=seconds, passes_each=4)
    click.echo(sum(window.rows.values()) / window.seconds)


def shown(row: dict[str, Any]) -> str:
    if "share" not in row:
        return ", ".join(
            f"{key} {value:,.0f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
        )
    bare = ", ".join(f"{kind} {rate:,.0f}/s" for kind, rate in row["bare"].items())
    return (
        f"| {row['network']} | {row['way']} | {row['rows_per_pass']:,} | {row['draws_a_request']:,} "
        f"| {row['share']:.3f} | {row['rows_per_second']:,.0f} | {row['full']:.3f} "
        f"| {row['host_ms_a_pass']:.1f} of {row['ms_a_pass']:.1f} | {bare} |"
    )


HEADER = """| network | way | rows a pass | draws a request | share of bare | rows/s | passes full | host ms | bare |
|---|---|---|---|---|---|---|---|---|"""


Part = Callable[[], dict[str, Any] | list[dict[str, Any]]]


def parts_of(bench: Bench) -> Iterator[Part]:
    """The least known first."""
    every = list(ways())
    ways_of: dict[str, list[Way]] = {}
    for way in every:
        ways_of.setdefault(way.network, []).append(way)
    yield partial(noise_rates, bench, (3, 32, 32))
    yield partial(noise_rates, bench, (3, 64, 64))
    yield partial(correctness, bench, replace(ways_of["7 M heads"][0], rows=512))
    for way in (*ways_of["7 M heads"], *ways_of["heads"], *ways_of["none"], *ways_of["ADM 296 M"]):
        yield partial(measured, bench, way)
    race, gradient = ways_of["7 M"][0], ways_of["7 M"][3]
    for way in (race, gradient):
        yield partial(correctness, bench, replace(way, rows=512))
    if bench.device == "cuda":
        for way in (race, gradient):
            yield partial(hidden_waits, bench, way)
    for way in (*ways_of["7 M"], *ways_of["55.7 M"]):
        yield partial(measured, bench, way)
    for count, rows in ((1, 2048), (2, 1024)):
        yield partial(actors_rate, bench, count, rows)


@click.command(help=__doc__)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--tiny", is_flag=True, help="Networks of a few channels, for a machine without a GPU.")
@click.option("--precision", type=click.Choice(list(DTYPES)), default="bfloat16", show_default=True)
@click.option("--channels-last/--no-channels-last", default=None, help="Left out: yes, where kernels for it are fused.")
@click.option("--seconds", default=150.0, show_default=True, help="No part begins after so long.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON, written after each row.")
@click.option("--actor-rows", type=int, hidden=True)
def main(
    device: str,
    tiny: bool,
    precision: str,
    channels_last: bool | None,
    seconds: float,
    out: Path | None,
    actor_rows: int | None,
) -> None:
    if device == "cpu":
        torch.set_num_threads(1)
    if channels_last is None:
        channels_last = device == "cuda" and hasattr(Execution, "launch")
    bench = Bench(device, tiny, Execution("float32" if tiny else precision, channels_last))  # type: ignore[arg-type]
    if actor_rows is not None:
        be_an_actor(bench, actor_rows)
        return
    started = time.perf_counter()
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    rows: list[dict[str, Any]] = [{"device": card, "torch": torch.__version__, **asdict(bench.execution)}]
    click.echo(shown(rows[0]))
    for part in parts_of(bench):
        if time.perf_counter() - started > seconds:
            click.echo(f"{seconds:.0f} s are over")
            break
        began = time.perf_counter()
        try:
            result = part()
        except Exception:
            result = {"failed": traceback.format_exc(limit=-4)}
        for row in result if isinstance(result, list) else [result]:
            rows.append(row)
            click.echo(f"{shown(row)} ({time.perf_counter() - began:.1f} s)")
        if out:
            out.write_text(json.dumps(rows, indent=1))
    click.echo("\n" + HEADER)
    for row in rows:
        if "share" in row:
            click.echo(shown(row))
    for row in rows:
        if "share" not in row:
            click.echo(shown(row))
    click.echo(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
