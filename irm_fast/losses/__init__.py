"""The public losses: checks of the arguments, one registration with torch, the choice of a backend.

`implicit` is the loss and the first file to open; `linear` takes hidden states instead of logits; `pointwise` is a
weighted cross-entropy, on which the `baselines` stand; `nuisances` estimates from a log what baselines need beside it.
Under them are `checks` (of arguments), `operator` (a loss as an operator of torch) and `dispatch` (whose kernels
compute it).
"""

MAX_SIGNALS = 16  # here because the reader of logs needs it, and takes no torch
