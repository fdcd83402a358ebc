"""Reward models on frozen embeddings.

From text to vectors: `embedder`, and `store` (their file). The estimator: `estimator` is what users import as
`irm_fast.EmbeddingRewardModel`, and `fit` its recipe, the first file to open: `observed` (what fit was given), the
propensities in `propensity_step` by `two_step` and `joint`, the reward in `reward_step`, `one_signal` where labels
choose; how propensities depend on user, time and session in `context_step` by `context_layer`; the `taste` of users.
Under them are `problem` (what all steps read), `parts` (of a fitted model), `objective` (the loss), `regression` and
`optimize`; `saved` is the file of a fit. `text_model` puts both together and scores text;
`irm_fast.training.on_embeddings` is the command.
"""
