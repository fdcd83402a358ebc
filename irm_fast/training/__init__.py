"""Training: a log of implicit feedback in, a reward model in a folder out.

`config` holds the settings of the two programs, and takes no torch. `run` is the recipe for a language model, and
`on_embeddings` the one for frozen embeddings: prepare, fit, choose, save. `prepare` checks and decides all that it can
before the work, `run_folder` guards the output folder, and `result` is what both recipes return. Of the language model
alone: `trainer` is the loop of transformers under the implicit loss, with `callbacks`, `distributed` and `throughput`.
"""
