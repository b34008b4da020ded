"""What hosts say that nobody can act on is left out: imported before them, by the command line and the recipes."""

import logging
import os
import warnings

os.environ.setdefault("TQDM_DELAY", "2")  # read when tqdm is imported: a bar is for work that takes longer
# bitsandbytes found no kernel of 4 bits for the CPU, said at its import, which peft's is
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda said: "gemm_4bit_forward" not in said.getMessage())
# transformers' new name of what TRL and PEFT still call so
warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing", FutureWarning)
