"""A language model with a reward head and propensity heads: tokens, batches, packing, attention, the model itself."""

from typing import Literal, get_args

# Here because the settings of a run name them, and settings take no torch.
Attention = Literal["auto", "flash_attention_4", "flash_attention_3", "flash_attention_2", "varlen", "sdpa", "eager"]
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
