"""A reward model behind HTTP: one process, one thread that owns the model, the protocols that trainers speak."""
