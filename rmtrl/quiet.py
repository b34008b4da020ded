"""What hosts say that nobody can act on is left out: imported before them, by the command line and the recipes."""

import logging
import os
import warnings

os.environ.setdefault("TQDM_DELAY", "2")  # read when tqdm is imported: a bar is for work that takes longer
# bitsandbytes found no kernel of 4 bits for the CPU, and DeepSpeed no accelerator: both said at an import
_SAID = ("gemm_4bit_forward", "Setting accelerator to CPU")
for _name in ("bitsandbytes.backends.cpu.ops", "DeepSpeed"):
    logging.getLogger(_name).addFilter(lambda said: not any(own in said.getMessage() for own in _SAID))
# transformers' new name of what TRL and PEFT still call so
warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing", FutureWarning)
