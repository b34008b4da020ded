"""What hosts say that nobody can act on is left out: imported before them, by the command line and the recipes."""

import os
import warnings

os.environ.setdefault("TQDM_DELAY", "2")  # read when tqdm is imported: a bar is for work that takes longer
# transformers' new name of what TRL and PEFT still call so
warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing", FutureWarning)
