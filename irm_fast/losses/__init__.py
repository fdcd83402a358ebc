"""The public losses: checks of the arguments, one registration with torch, the choice of a backend.

`implicit` is the loss and the first file to open; `linear` takes hidden states instead of logits; `pointwise` is a
weighted cross-entropy, on which the `baselines` stand; `nuisances` estimates from a log what baselines need beside it.
`signal_heads` and `hf` are for a training loop of one's own: heads, and the loss function of transformers' Trainer.
Under them are `checks` and `batch_checks` (of arguments), `conversions` (to what kernels read), `operator` (a loss as
an operator of torch) and `dispatch` (whose kernels compute it).
"""

MAX_SIGNALS = 16  # here because the reader of logs needs it, and takes no torch
SCALAR_LEARNING_RATE = 3e-2  # of biases of reward and propensities; here because the command line needs it, likewise
