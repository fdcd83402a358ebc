"""Reward models on frozen embeddings.

From text to vectors: `embed`, `store` (their file). The estimator: `observed` (what fit was given), `two_step` and
`propensity_step`, `reward_step`, `heads` (networks, L-BFGS), `activity`, `estimator` and its `file`. Both together:
`training` (the command line), `text_model` (scores text). Users import `irm_fast.EmbeddingRewardModel`.
"""
