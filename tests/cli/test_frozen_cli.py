"""The command line is frozen: a renamed or vanished option is a decision. Later changes extend the table on purpose."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

from irm_fast.cli.commands import app

SHARED = (
    "output data propensity-design estimator misclick-rate contradictions labels-ignorable "
    "validation-fraction seed progress overwrite"
)
TEXTS = "map fold-system join-turns on-error max-errors"
LOG = f"{TEXTS} signals polarity absent null counts"
TEXT = (
    "model propensity-rows pairs pairs-weight objective stratification ema-decay epochs batch-size token-budget "
    "gradient-accumulation learning-rate head-learning-rate weight-decay warmup-ratio max-length overlong eval-steps "
    "save-steps save-minutes "
    "patience precision attn compile liger lora-rank lora-alpha lora-targets lora-keep-adapter load-in-4bit fsdp "
    "gradient-checkpointing optim trainer on-nonfinite max-skipped-steps report-to resume"
)
OPTIONS = {
    "validate": f"data misclick config {LOG}",
    "import": "product files out impressions actions on window instrumented-since until signals memory overwrite",
    "simulate": "rated out protocol alpha target signals seed test-fraction overwrite",
    "train": f"config dry-run {LOG} {SHARED} {TEXT} embeddings hidden-layers",
    "report": "directory out",
    "verify": "path",
    "export": "model out to merge push-to-hub check data",
    "evaluate": f"model data batch-size token-budget precision base progress {LOG}",
    "diagnose": (f"data model propensity-design labels-ignorable batch-size token-budget precision base {LOG}"),
    "compare": f"data model by randomised outcome batch-size token-budget precision progress {LOG}",
    "mask": f"what data out overwrite {LOG}",
    "score": f"model data out batch-size token-budget precision lower resume overwrite progress {TEXTS}",
    "label": f"next merge data model out seed batch-size token-budget precision overwrite {LOG}",
    "embed": (
        "data model out pooling batch-size token-budget max-length precision dtype shard-rows resume overwrite "
        f"progress {TEXTS}"
    ),
    "reproduce": ("data output model protocol redraws alpha target limit max-length noise processes resume overwrite"),
    "downstream": "output seeds small processes resume overwrite",
    "worlds": "output rows redraws processes resume overwrite",
    "demo": "output seeds processes",
    "doctor": "",
}
for name in OPTIONS:
    OPTIONS[name] += " json quiet debug"
for name in OPTIONS.keys() - {
    "verify",
    "reproduce",
    "downstream",
    "worlds",
    "demo",
    "doctor",
}:  # which read no data of users
    OPTIONS[name] += " redact"
CHOICES = {
    ("export", "to"): "hf sentence-transformers",
    ("train", "propensity-design"): "auto constant hidden features known",
    ("simulate", "protocol"): "rating feature",
    ("reproduce", "protocol"): "both rating feature",
    ("embed", "pooling"): "auto last cls mean",
    ("embed", "dtype"): "float32 bfloat16",
    ("train", "on-error"): "fail skip quarantine",
    ("validate", "on-error"): "fail skip quarantine",
    ("train", "objective"): "marginal stratified",
    ("train", "stratification"): "current ema frozen",
    ("train", "overlong"): "truncate drop",
    ("train", "on-nonfinite"): "stop skip",
    ("train", "precision"): "auto float32 bfloat16",
    ("score", "precision"): "auto float32 bfloat16",
    ("diagnose", "precision"): "auto float32 bfloat16",
    ("label", "precision"): "auto float32 bfloat16",
    ("embed", "precision"): "auto float32 bfloat16",
    ("train", "attn"): "auto flash_attention_4 flash_attention_3 varlen flash_attention_2 sdpa eager",
    ("train", "gradient-checkpointing"): "none full selective",
    ("train", "contradictions"): "error drop",
    ("train", "estimator"): "auto two-step joint",
    ("diagnose", "propensity-design"): "auto constant hidden features known",
}


def test_commands_and_options() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = {name: {_name(parameter) for parameter in command.params} - {"help"} for name, command in commands.items()}
    assert found == {name: set(options.split()) for name, options in OPTIONS.items()}


def test_choices() -> None:
    for (command, option), choices in CHOICES.items():
        shown = "".join(CliRunner().invoke(app, [command, "--help"]).output.split())
        assert f"--{option}[{'|'.join(choices.split())}]" in shown, (command, option)


def _name(parameter: object) -> str:
    return str(max(parameter.opts, key=len)).lstrip("-").replace("_", "-")  # type: ignore[attr-defined]
