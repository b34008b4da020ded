"""The reward-model stage: trainer, callbacks, validator collator, scorer."""
