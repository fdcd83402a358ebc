"""A language model with a reward head and propensity heads: tokens, batches, packing, attention, the model itself."""

from typing import Literal, get_args

# Here because settings and the command line name them, and take no torch.
Attention = Literal["auto", "flash_attention_4", "flash_attention_3", "varlen", "flash_attention_2", "sdpa", "eager"]
Recompute = Literal["none", "full", "selective"]  # of activations, in the backward pass
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
Precision = Literal["auto", "float32", "bfloat16"]
