"""What differs between versions of transformers; a branch on TRL's that PPO needs stands in `rmtrl/ppo/_base.py`."""

import transformers
from packaging.version import Version

_TRANSFORMERS = Version(transformers.__version__)

CACHE = "cache" if Version("5.24.dev0") <= _TRANSFORMERS else "past_key_values"
"""Name of the key-value cache in the arguments and outputs of a model; the older one warns from 5.24 on."""

CHECKPOINTING = "activation_checkpointing" if Version("5.23.dev0") <= _TRANSFORMERS else "gradient_checkpointing"
"""How a model's recomputation is called: `{CHECKPOINTING}_enable`, `is_{CHECKPOINTING}`, `{CHECKPOINTING}_kwargs`."""
