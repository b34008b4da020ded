"""Every text chat template in TRL's wheel, each with a tokenizer made for it.

The tokenizer's special tokens are the markers that stand in the template, and its end token is what ends a turn there.
Templates of vision models take text alone.
"""

import re
from functools import cache
from pathlib import Path

import trl
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from rmtrl.tiny import make_tiny_tokenizer

FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))

# the end of a turn, and the start of a text where the template writes one, by the beginning of the template's name
_ENDS = {
    "cohere": ("<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>"),
    "deepseek": ("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"),
    "diffusion_gemma": ("<turn|>", "<bos>"),
    "gemma4": ("<turn|>", "<bos>"),
    "gemma": ("<end_of_turn>", "<bos>"),
    "glm": ("<|endoftext|>", None),
    "gptoss": ("<|return|>", None),
    "idefics": ("<end_of_utterance>", "<s>"),
    "lfm": ("<|im_end|>", "<|startoftext|>"),
    "llama": ("<|eot_id|>", "<|begin_of_text|>"),
    "llava": ("</s>", "<s>"),
    "muse": ("<|eot|>", "<|begin_of_text|>"),
    "nemotron": ("<|im_end|>", None),
    "phi": ("<|end|>", None),
    "qwen": ("<|im_end|>", None),
    "smolvlm": ("<end_of_utterance>", None),
}
_MARKERS = re.compile(r"<\|[A-Za-z_]+\|?>|<[A-Za-z_]+\|>|<｜[^｜>]+｜>|<(?:start|end)_of_\w+>|\[/?INST\]")
_TEXT = "the a is of sun moon sea red green blue one two three good bad yes no user assistant system think tool call"


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """Returns the tokenizer of a template; the caller leaves it as it is."""
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    end, start = next(marks for beginning, marks in _ENDS.items() if name.startswith(beginning))
    markers = dict.fromkeys([*_MARKERS.findall(template), end, *([start] if start else [])])
    tokenizer = make_tiny_tokenizer([_TEXT] * 20, vocab_size=320)
    tokenizer.add_special_tokens(
        {
            "eos_token": end,
            **({"bos_token": start} if start else {}),
            "extra_special_tokens": [AddedToken(m, special=True, normalized=False) for m in markers],
        }
    )
    tokenizer.chat_template = template
    return tokenizer
