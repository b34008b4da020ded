"""Serving: `rmtrl serve` under load on loopback, against RewardScorer in its own process on the same texts.

    RMTRL_DATA=… python tests/benchmarks/bench_serving.py [--rounds 3] [--texts 960] [--requests 50000] [--save]

The model is a Llama with hidden 256, 4 layers and a byte-BPE of 4,096 tokens, in float32; texts are whole answers of
hh-rlhf. The client holds a connection a worker, writes the next request when the last is answered, and takes a share
of the same cores. Throughput at 32 clients is compared with RewardScorer given windows of 32 of the same texts, in
turn; eight candidates of one prompt of 512 tokens come as requests of their own, one after another and at once. The
long run asks short texts of 32 clients and reads the server's memory. About 6 minutes, with
50,000 requests, on two quiet cores.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from bench_scoring import candidates
from workloads import human_pairs, machine, make_model, make_tokenizer, spread
from worlds import quiet, say, write_section

from rmtrl import RewardScorer

CLIENTS = 32


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Yields host, port and process id of a server of the model."""
    command = [sys.executable, "-m", "rmtrl", "serve", "--model", str(folder), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if " is served at " in line)
        host, port = line.split("//")[1].strip().split(":")
        try:
            yield host, int(port), process.pid
        finally:
            process.terminate()
            assert process.wait(60) == 0


async def client(
    host: str, port: int, bodies: Iterator[tuple[int, bytes]], found: dict[int, tuple[float, Any]]
) -> None:
    """Posts bodies one after another on a connection of its own; notes seconds and scores, or what came instead."""
    reader, writer = await asyncio.open_connection(host, port)
    for number, body in bodies:
        start = time.perf_counter()
        head = f"POST /score HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        writer.write(f"{head}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        text = await reader.readexactly(int(answer.split("content-length: ")[1].split("\r\n")[0]))
        scores = json.loads(text)["scores"] if answer.startswith("http/1.1 200") else text
        found[number] = time.perf_counter() - start, scores
    writer.close()
    await writer.wait_closed()


def load(address: tuple[str, int, int], texts: Sequence[str], n_clients: int) -> tuple[float, np.ndarray, list[Any]]:
    """Returns seconds in all, seconds of each request, and the score of each, of texts asked by n clients at once."""
    found: dict[int, tuple[float, Any]] = {}
    bodies = iter([(i, json.dumps({"conversations": [text]}).encode()) for i, text in enumerate(texts)])

    async def run() -> None:
        await asyncio.gather(*(client(*address[:2], bodies, found) for _ in range(n_clients)))

    start = time.perf_counter()
    asyncio.run(run())
    seconds = time.perf_counter() - start
    return seconds, np.array([found[i][0] for i in range(len(texts))]), [found[i][1] for i in range(len(texts))]


def windows(scorer: RewardScorer, texts: Sequence[str]) -> tuple[float, list[float]]:
    """Returns seconds and scores of texts in windows as large as the number of clients."""
    start = time.perf_counter()
    scores = [s for i in range(0, len(texts), CLIENTS) for s in scorer.score(texts[i : i + CLIENTS]).tolist()]
    return time.perf_counter() - start, scores


def memory(pid: int) -> float:
    """Returns the resident memory of a process, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def throughput(address: tuple[str, int, int], scorer: RewardScorer, texts: Sequence[str], rounds: int) -> list[str]:
    """Returns the rows of texts a second: in process, by 32 clients, by one."""
    ways: dict[str, list[float]] = {"in process": [], "32 clients": [], "1 client": []}
    ratios, delays = [], []
    for _ in range(rounds):
        seconds, wanted = windows(scorer, texts)
        many, own, scores = load(address, texts, CLIENTS)
        few = texts[: len(texts) // 4]
        one = load(address, few, 1)[0]
        assert np.abs(np.concatenate(scores) - wanted).max() < 1e-5
        for name, value in zip(ways, (len(texts) / seconds, len(texts) / many, len(few) / one), strict=True):
            ways[name].append(value)
        ratios.append(seconds / many)
        delays.append(own)
        say(
            f"in process {len(texts) / seconds:.0f}, 32 clients {len(texts) / many:.0f}, 1 client {len(few) / one:.0f}"
        )
    p50, p99 = np.quantile(np.concatenate(delays), [0.5, 0.99]) * 1000
    gain = [many / one for many, one in zip(ways["32 clients"], ways["1 client"], strict=True)]
    return [
        *(f"| texts a second, {name} | {spread(values, 0)} |" for name, values in ways.items()),
        f"| 32 clients ÷ RewardScorer on windows of 32 | {spread(ratios)} |",
        f"| 32 clients ÷ 1 client | {spread(gain)} |",
        f"| a request of 32 clients, p50 and p99 | {p50:.0f} and {p99:.0f} ms |",
    ]


def shared_prompts(address: tuple[str, int, int], tokenizer: Any, rounds: int) -> list[str]:
    """Returns the row of eight candidates of one long prompt, as requests at once and one after another."""
    texts, gains = candidates(tokenizer, 2 + 4 * rounds, n=8), []
    groups = [texts[i : i + 8] for i in range(0, len(texts), 8)]
    load(address, groups[0], 8), load(address, groups[1], 1)
    for start in range(2, len(groups), 4):
        once, serial = [load(address, group, 8)[0] for group in groups[start : start + 4]], []
        for group in groups[start : start + 4]:
            serial.append(load(address, group, 1)[0])
        gains.append(sum(serial) / sum(once))
        say(f"8 candidates: {1000 * np.mean(once):.0f} ms at once, {1000 * np.mean(serial):.0f} ms one after another")
    return [f"| 8 candidates of a prompt of 512 tokens, at once ÷ one after another | {spread(gains)} |"]


def long_run(address: tuple[str, int, int], texts: Sequence[str], n: int) -> list[str]:
    """Returns the rows of the long run: what failed, and the server's memory after a tenth and at the end."""
    short = [f"{text[:60]} {i}" for i, text in enumerate(list(texts) * (1 + n // len(texts)))][:n]
    failed, seen, seconds, part = 0, [memory(address[2])], 0.0, max(n // 10, 1)
    for start in range(0, n, part):
        took, _, scores = load(address, short[start : start + part], CLIENTS)
        failed += sum(not isinstance(own, list) for own in scores)
        seconds += took
        seen.append(memory(address[2]))
        say(f"{start + part:,} requests: {failed} failed, {seen[-1]:.0f} MiB")
    return [
        f"| {n:,} requests, failed | {failed} |",
        f"| requests a second, short texts | {n / seconds:.0f} |",
        f"| server's memory after a tenth and at the end | {seen[1]:.0f} and {seen[-1]:.0f} MiB |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=960)
    parser.add_argument("--requests", type=int, default=50_000, help="of the long run; 0 leaves it out")
    parser.add_argument("--save", action="store_true", help="put the table into RESULTS.md")
    arguments = parser.parse_args()
    quiet()
    pairs = human_pairs()
    tokenizer = make_tokenizer(pairs)
    model = make_model(tokenizer).eval()
    scorer = RewardScorer(model, tokenizer, progress=False)
    texts = [row["prompt"] + row["chosen"] for row in pairs[: 2 * arguments.texts]]
    texts = [text for text, fits in zip(texts, scorer.holds(texts), strict=True) if fits][: arguments.texts]
    lines = [
        f"{machine()}; {len(texts):,} texts, median and range of {arguments.rounds} rounds.",
        "",
        "| what | |",
        "|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with served(Path(folder)) as address:
            say(f"a server of {len(texts):,} texts at port {address[1]}")
            load(address, texts[: 2 * CLIENTS], CLIENTS)
            windows(scorer, texts[:CLIENTS])
            lines += throughput(address, scorer, texts, arguments.rounds)
            lines += shared_prompts(address, tokenizer, arguments.rounds)
            if arguments.requests:
                lines += long_run(address, texts, arguments.requests)
    write_section("Serving", lines, save=arguments.save)


if __name__ == "__main__":
    main()
