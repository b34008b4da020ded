"""Proximal policy optimization on top of TRL and transformers."""
