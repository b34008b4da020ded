"""A URL wherever a model goes: the commands and trainers give, against `rmtrl serve` in another process, what they
give with the folder."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import served

from rmtrl.evaluation.fingerprints import model_fingerprint

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_and_tokenizer):
    """Folder of a tiny reward model."""
    folder = tmp_path_factory.mktemp("served") / "rm"
    for part in model_and_tokenizer():
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with served.running(folder) as server:
        yield server


@pytest.fixture
def files(tmp_path, rows):
    """Pairs of messages, prompts with candidates, and verdicts over fresh answers."""

    def chat(role, text):
        return [{"role": role, "content": text}]

    given = rows(40)
    for index, row in enumerate(given):
        row.update(id=f"p{index}", domain="a", prompt=chat("user", f"{row['prompt']} {index}"))
        row.update({side: chat("assistant", row[side]) for side in ("chosen", "rejected")})
    asked = [{"prompt": row["prompt"], "candidates": [row["chosen"][0]["content"], row["rejected"][0]["content"]]}
             for row in given]  # fmt: skip
    found = {}
    plain = [{"id": row["id"], **{side: row[side][0]["content"] for side in ("chosen", "rejected")},
              "prompt": row["prompt"][0]["content"]} for row in given]  # fmt: skip
    sides = [{"id": row["id"], "prompt": row["prompt"], "a": row["chosen"], "b": row["rejected"]} for row in given]
    told = {"verdict": "a", "reviewed_by": "human", "reviewer": "ann"}
    verdicts = [row | told | {"prompt_id": row["id"]} for row in sides]
    (tmp_path / "mine").mkdir()
    for name, own in {"pairs": given, "asked": asked, "mine/short": plain, "verdicts": verdicts}.items():
        found[name] = tmp_path / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps(row) + "\n" for row in own))
    found["benchmark"] = tmp_path / "mine"
    (tmp_path / "mine" / "benchmark.yaml").write_text("name: mine\nkind: x\nrule: pairs\nsubsets:\n  s: short.jsonl\n")
    return SimpleNamespace(**found, tmp=tmp_path)


def numbers(value):
    """All numbers in a JSON value, in order, but what depends on the clock."""
    if isinstance(value, dict):
        return [
            n for key, own in value.items() if key not in ("seconds", "environment", "rendering") for n in numbers(own)
        ]
    if isinstance(value, list):
        return [n for own in value for n in numbers(own)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


@pytest.mark.parametrize("kind", ["url", "url#folder", "url/classify#folder"])
def test_commands_give_with_a_url_what_they_give_with_the_folder(kind, rmtrl, server, folder, files):
    url = kind.replace("url", server.url).replace("folder", str(folder))
    out = files.tmp / "out"
    commands = {
        "score": [files.pairs, "--out", out],
        "rerank": [files.asked, "--out", out],
        "calibrate": [files.pairs, "--out", out],
        "evaluate": ["--benchmark", files.benchmark, "--out", files.tmp / "evaluated"],
        "audit": [files.pairs],
        "fresh score": [files.verdicts, "--out", out],
    }
    if kind == "url":
        code, _, err = rmtrl("audit", *commands.pop("audit"), "--model", url)
        assert code == 2 and "name the checkpoint that it serves behind a #" in err
    for name, arguments in commands.items():
        found = []
        for model in (folder, url):
            code, printed, err = rmtrl(*name.split(), *arguments, "--model", model, "--json")
            assert code == 0, err
            written = out.read_text() if out.is_file() else "{}"
            rows = [json.loads(written)] if "schema" in written else map(json.loads, written.splitlines())
            found.append(numbers([json.loads(printed), *rows]))
            if name in ("calibrate", "fresh score"):
                assert json.loads(written)["model_fingerprint"] == model_fingerprint(folder) == model_fingerprint(url)
            out.unlink(missing_ok=True)
        one, other = map(np.array, found)
        assert len(one) > 3 and np.abs(one - other).max() < 1e-5, name


def test_a_server_that_is_gone_is_one_line(rmtrl, files):
    code, out, err = rmtrl("score", files.pairs, "--model", "http://127.0.0.1:9", "--out", files.tmp / "s.jsonl")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "in 5 tries" in err
