"""What hosts say that nobody can act on is left out: imported before them, by the command line and the recipes."""

import os
import warnings

from rmtrl import _leave_out

os.environ.setdefault("TQDM_DELAY", "2")  # read when tqdm is imported: a bar is for work that takes longer
# transformers' new name of what TRL and PEFT still call so
warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing", FutureWarning)
_leave_out("transformers.tokenization_utils_base", "Token indices sequence length is longer")  # it is measured
_leave_out("transformers.trainer_utils", "mtime may not be reliable")  # checkpoints within a second
