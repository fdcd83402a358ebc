"""The headings of the help of commands, under which settings and other options stand, in their order.

A setting has its heading with it (`training/log_settings.py`), and options of the command line have the same ones.
"""

HEADINGS = (
    MAIN := "Options",
    REWARD := "Reward and propensities",
    STEPS := "Rows and steps",
    SAVES := "Evaluation and checkpoints",
    SPEED := "Speed and memory",
    ADAPTERS := "Adapters (LoRA)",
    ON_EMBEDDINGS := "On embeddings",
    READ := "How the log is read",
    PASSES := "How rows pass through the model",
    PRINTED := "What is printed",
)
