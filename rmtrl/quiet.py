"""What hosts say that nobody can act on is left out: imported before them, by the command line and the recipes."""

import logging
import os
import warnings

os.environ.setdefault("TQDM_DELAY", "2")  # read when tqdm is imported: a bar is for work that takes longer
# transformers' new name of what TRL and PEFT still call so
warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing", FutureWarning)
# a text longer than the model, tokenized to be measured; checkpoints within a second
_SAID = {
    "transformers.tokenization_utils_base": "Token indices sequence length is longer",
    "transformers.trainer_utils": "mtime may not be reliable",
}
for _name in _SAID:
    logging.getLogger(_name).addFilter(lambda said: _SAID[said.name] not in said.getMessage())
