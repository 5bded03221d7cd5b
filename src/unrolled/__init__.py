"""Unrolled: recurrent networks in JAX, from the equations of a GRU to a Flax-style stack."""

from unrolled import convert as convert
from unrolled.cells import (
    GRUCell,
    LearnedCarry,
    LSTMCell,
    OptimizedLSTMCell,
    RNNCellBase,
    SimpleCell,
    modified_orthogonal,
    orthogonal_in_any_dtype,
    orthogonal_per_gate,
)
from unrolled.gru import gru_sequence, gru_step, initialize_gru_params
from unrolled.layers import RNN, Bidirectional, RNNBase, StackedRNN
from unrolled.sequences import (
    flip_sequences,
    last_valid_step,
    mask_padding,
    pad_sequences,
    sequence_mask,
    unpad_sequences,
)

__version__ = "0.1.0"

__all__ = [
    "RNN",
    "Bidirectional",
    "GRUCell",
    "LSTMCell",
    "LearnedCarry",
    "OptimizedLSTMCell",
    "RNNBase",
    "RNNCellBase",
    "SimpleCell",
    "StackedRNN",
    "flip_sequences",
    "gru_sequence",
    "gru_step",
    "initialize_gru_params",
    "last_valid_step",
    "mask_padding",
    "modified_orthogonal",
    "orthogonal_in_any_dtype",
    "orthogonal_per_gate",
    "pad_sequences",
    "sequence_mask",
    "unpad_sequences",
]
