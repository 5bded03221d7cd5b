"""Unrolled: recurrent networks in JAX, from the equations of a GRU to a Flax-style stack."""

from unrolled.gru import gru_sequence, gru_step, initialize_gru_params

__version__ = "0.1.0"

__all__ = ["gru_sequence", "gru_step", "initialize_gru_params"]
