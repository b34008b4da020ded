"""Every architecture of transformers that can be made small without a hub, with random weights."""

import functools

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

VOCABULARY, PAD, EOS, POSITIONS = 320, 0, 3, 96
_MOST_WEIGHTS = 4_000_000
_WIDTHS = dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size"], 32)
_INNER = dict.fromkeys(
    ["intermediate_size", "ffn_dim", "d_ff", "hidden_dim", "d_inner", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim",
     "ffn_hidden_size"], 64,
)  # fmt: skip
_LAYERS = dict.fromkeys(
    ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
     "num_decoder_layers", "num_encoder_layers"], 2,
)  # fmt: skip
_HEADS = dict.fromkeys(
    ["num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"], 4
)
_HEAD_WIDTHS = dict.fromkeys(
    ["d_kv", "head_dim", "d_head", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "q_lora_rank",
     "kv_lora_rank", "rotary_dim", "linear_key_head_dim", "linear_value_head_dim", "mamba_d_head", "mamba_d_state"], 8,
)  # fmt: skip
_EXPERTS = dict.fromkeys(
    ["n_routed_experts", "num_local_experts", "num_experts", "linear_num_key_heads", "linear_num_value_heads"], 4
)
_EXPERT_WIDTHS = dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 16)
_OTHERS = dict(
    vocab_size=VOCABULARY, num_key_value_heads=2, num_experts_per_tok=2, n_group=1, topk_group=1,
    max_position_embeddings=POSITIONS, n_positions=POSITIONS, initializer_range=0.2, init_std=0.2,
)  # fmt: skip
_SMALL = _WIDTHS | _INNER | _LAYERS | _HEADS | _HEAD_WIDTHS | _EXPERTS | _EXPERT_WIDTHS | _OTHERS
_TOKENS = dict(pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD)
_SAME_HEADS = {"num_key_value_heads": 4}
_OWN = {
    "axk1": _SAME_HEADS, "axk2": _SAME_HEADS, "deepseek_v2": _SAME_HEADS, "deepseek_v3": _SAME_HEADS,
    "minicpm3": _SAME_HEADS, "esmc": _SAME_HEADS,
    "deepseek_v32": _SAME_HEADS, "glm4_moe_lite": _SAME_HEADS, "glm_moe_dsa": _SAME_HEADS,
    "longcat_flash": _SAME_HEADS, "youtu": _SAME_HEADS, "mistral4": _SAME_HEADS | {"head_dim": None},
    "deberta-v2": {"position_biased_input": False, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "falcon": {"head_dim": None, "alibi": True}, "xlnet": {"max_position_embeddings": None},
    "funnel": {"num_hidden_layers": None, "block_sizes": [1, 1]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "xmod": {"default_language": "en_XX"},
}  # fmt: skip
_LLAMA = {name: _SMALL[name] for name in (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "initializer_range",
)} | {"pad_token_id": PAD, "eos_token_id": EOS}  # fmt: skip
_OWN["t5gemma"] = {"encoder": _LLAMA, "decoder": _LLAMA}


def small_config(kind, **settings):
    """The configuration of an architecture with every size that it has made small."""
    default = CONFIG_MAPPING[kind]()
    asked = {name: value for name, value in _SMALL.items() if name in default.to_dict() or hasattr(default, name)}
    asked |= _TOKENS | _OWN.get(kind, {}) | settings
    return CONFIG_MAPPING[kind](**{name: value for name, value in asked.items() if value is not None})


def small_model(auto, kind, **settings):
    """The model of an architecture, with seeded weights, in evaluation mode."""
    torch.manual_seed(0)
    return auto.from_config(small_config(kind, **settings)).eval()


@functools.cache
def _makeable(auto, names):
    found = []
    for kind in sorted(names):
        try:
            with torch.device("meta"):
                model = auto.from_config(small_config(kind))
        except Exception:  # what needs files, other packages, or settings of its own
            continue
        if sum(weight.numel() for weight in model.parameters()) < _MOST_WEIGHTS:
            found.append(kind)
    return found


def classifiers():
    """The architectures that a reward model can have, by name."""
    return _makeable(AutoModelForSequenceClassification, tuple(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES))


def language_models():
    """The architectures that a policy can have, by name."""
    return _makeable(AutoModelForCausalLM, tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
