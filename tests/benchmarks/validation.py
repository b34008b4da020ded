"""What validation costs: against an identity `Dataset.map` over the same rows in the same run.

    python tests/benchmarks/validation.py [rows, default 1000000]

Writes that many pairs made in place to a jsonl file, then in a process each, one after the other: an identity map (per
row, one process, cache off), `validate`, and the whole command `rmtrl data validate --out --rejects`. One row in a
thousand is broken, and as many repeat another. Prints one JSON object: seconds and peak resident memory (GB) of each,
and the seconds of `validate` over those of the map. The memory of the first two holds the reading of the file.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [f"word{number}" for number in range(1000)]


def write_pairs(path: Path, n: int) -> None:
    """Writes `n` rows of some 400 characters; every thousandth is cut short, its neighbour a repetition."""
    draw, line = random.Random(0), ""
    with path.open("w") as file:
        for number in range(n):
            row = {
                "id": f"pair-{number}",
                "prompt": f"{number:,} {' '.join(draw.choices(WORDS, k=16))}",
                "chosen": " ".join(draw.choices(WORDS, k=16)),
                "rejected": " ".join(draw.choices(WORDS, k=16)),
                "domain": WORDS[number % 20],
                "margin": draw.random(),
            }
            line = line if number % 1000 == 2 else json.dumps(row)
            file.write(f"{line[:-9] if number % 1000 == 5 else line}\n")


def measure(stage: str, path: Path) -> dict[str, float]:
    """Returns seconds and peak memory of one stage, run in this process."""
    from rmtrl import cli
    from rmtrl.data.preferences import read_preferences
    from rmtrl.data.validation import validate

    found: dict[str, float] = {}
    started = time.perf_counter()
    if stage == "command":
        outputs = [str(path.with_name(name)) for name in ("kept.jsonl", "rejects.jsonl")]
        sys.argv = ["rmtrl", "data", "validate", str(path), "--out", outputs[0], "--rejects", outputs[1], "--json"]
        stdout, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115
        try:
            cli.main()
        except SystemExit as stop:
            assert not stop.code, stop.code
        sys.stdout = stdout
    else:
        pairs = read_preferences(path, faulty="keep")
        found["read_seconds"] = time.perf_counter() - started
        started = time.perf_counter()
        if stage == "identity_map":
            pairs.map(lambda row: row, load_from_cache_file=False)
        else:
            result = validate(pairs)
            found |= {"n": result.n, "rejected": len(result.rejects)}
    found["seconds"] = time.perf_counter() - started
    # Linux counts in KiB, macOS in bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return found | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}


def main(n: int) -> dict[str, object]:
    """Returns the figures of all stages at `n` rows."""
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        write_pairs(path, n)
        for stage in ("identity_map", "validate", "command"):
            environment = os.environ | {"HF_DATASETS_CACHE": f"{folder}/{stage}", "HF_HUB_OFFLINE": "1"}
            command = [sys.executable, __file__, "--stage", stage, str(path)]
            child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            figures[stage] = json.loads(child.stdout)
    ratio = figures["validate"]["seconds"] / figures["identity_map"]["seconds"]
    return {"rows": n, "ratio": ratio, **figures}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stage"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]))))
    else:
        print(json.dumps(main(int(sys.argv[1]) if sys.argv[1:] else 1_000_000), indent=2))
