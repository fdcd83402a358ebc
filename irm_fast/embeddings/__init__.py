"""Reward models on frozen embeddings.

From text to vectors: `embedder`, and `store` (their file). The estimator: `estimator` is what users import as
`irm_fast.EmbeddingRewardModel`, and `fit` its recipe, the first file to open: `observed` (what fit was given), the
propensities in `propensity_step` by `two_step`, `joint` and `activity`, the reward in `reward_step`. Under them are
`parts` (of a fitted model), `objective` (the loss) and `optimize`; `saved` is the file of a fit. `text_model` puts both
together and scores text; `irm_fast.training.on_embeddings` is the command.
"""
