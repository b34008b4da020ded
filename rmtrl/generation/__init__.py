"""`Generator`, the door through which every policy is asked for completions, and one over transformers' generate."""

from rmtrl.generation.generator import Completion, Generator, TransformersGenerator
from rmtrl.generation.sampling import SeededSampling, gumbel_noise, sampling_key

__all__ = ["Completion", "Generator", "SeededSampling", "TransformersGenerator", "gumbel_noise", "sampling_key"]
