"""Offline settings, made before any Hugging Face library is imported, and what tests of several stages share."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

_CACHE = tempfile.mkdtemp(prefix="rmtrl-datasets-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = _CACHE

import pytest  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from served import servers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast  # noqa: E402

from rmtrl.tiny import make_tiny_tokenizer  # noqa: E402

WORDS = ["red", "green", "blue", "one", "two", "three", "sun", "moon", "sea", "good", "bad", "yes", "no", "thanks"]


def text_rows(n: int, seed: int = 0) -> list[dict[str, str]]:
    """N pairs of standard text, whose sides differ and whose lengths vary."""
    generator = torch.Generator().manual_seed(seed)

    def words(low: int, high: int) -> str:
        count = int(torch.randint(low, high, (), generator=generator))
        return " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (count,), generator=generator))

    return [
        {"prompt": words(3, 6) + " ?", "chosen": f" good {words(1, 9)}", "rejected": f" bad {words(1, 9)}"}
        for _ in range(n)
    ]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public data sets that `RMTRL_DATA` names; tests that need it are skipped without."""
    if "RMTRL_DATA" not in os.environ:
        pytest.skip("RMTRL_DATA is not set")
    return Path(os.environ["RMTRL_DATA"])


@pytest.fixture(scope="session")
def rows():
    return text_rows


@pytest.fixture
def rmtrl(monkeypatch, capsys):
    """Runs the command in this process; returns exit code, stdout and stderr."""
    from rmtrl import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rmtrl", *map(str, arguments)])
        capsys.readouterr()  # what was printed before is not the command's
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def serve():
    """A function that serves another, `answer(path, body) -> object or (status, object, headers)`, in this process."""
    with servers() as start:
        yield start


@pytest.fixture
def pairs() -> Dataset:
    return Dataset.from_list(text_rows(12))


@pytest.fixture
def chats() -> Dataset:
    def turn(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    return Dataset.from_list(
        [
            {
                "prompt": turn("user", row["prompt"]),
                "chosen": turn("assistant", row["chosen"]),
                "rejected": turn("assistant", row["rejected"]),
            }
            for row in text_rows(12)
        ]
    )


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tiny_tokenizer([" ".join(WORDS)] * 20, vocab_size=320)


@pytest.fixture
def model(tokenizer):
    return make_model(tokenizer)


@pytest.fixture
def new_model(tokenizer):
    """A function that makes the same small Llama again, with any setting replaced."""

    def make(**settings: object) -> LlamaForSequenceClassification:
        return make_model(tokenizer, **settings)

    return make


@pytest.fixture(scope="session")
def model_and_tokenizer():
    """A function that makes both, for fixtures that several tests share."""

    def make(**settings: object) -> tuple[LlamaForSequenceClassification, PreTrainedTokenizerFast]:
        tokenizer = make_tiny_tokenizer([" ".join(WORDS)] * 20, vocab_size=320)
        return make_model(tokenizer, **settings), tokenizer

    return make


def make_model(tokenizer: PreTrainedTokenizerFast, **settings: object) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    defaults = dict(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.2,
    )
    return LlamaForSequenceClassification(LlamaConfig(**(defaults | settings)))


@pytest.fixture
def four_bit_in_float32(monkeypatch):
    """Quantised layers as they are on any CPU: where it has bf16, bitsandbytes packs them for inference in bf16."""
    import bitsandbytes.backends.cpu.ops
    import bitsandbytes.nn.modules

    for module in (bitsandbytes.nn.modules, bitsandbytes.backends.cpu.ops):
        monkeypatch.setattr(module, "has_avx512bf16", lambda: False, raising=False)


@pytest.fixture
def checkpoint(tmp_path, model, tokenizer) -> Path:
    """The folder of the tiny reward model."""
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


@pytest.fixture
def policy(tmp_path, model, tokenizer) -> Path:
    """The folder of a tiny language model with weights of its own."""
    torch.manual_seed(1)
    LlamaForCausalLM(model.config).save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"
