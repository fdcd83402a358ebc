"""A checkpoint that other programs read as it is: their score is the reward, their tokens are those of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irm_fast.common.warning import warn_caller
from irm_fast.data.writing.manifest import files_of
from irm_fast.data.writing.whole import whole_files, write_whole
from irm_fast.models.foreign_files import quiet_transformers
from irm_fast.models.record import CHECKPOINT_WEIGHTS, INDEX
from irm_fast.models.template import SAMPLE
from irm_fast.models.tokens import Refused, first_line, render

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What sentence-transformers' CrossEncoder and vLLM's /score apply to the logit; a sigmoid where nothing is said.
ACTIVATION = {"activation_fn": "torch.nn.modules.linear.Identity"}
_SENTENCES, _TOKENIZER = "sentence_transformers", "tokenizer_config.json"
_OWN = ("add_bos_token", "add_eos_token")  # by which transformers 4 adds tokens, whatever tokenizer.json says


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[str]:
    """Write a language model and its tokenizer as transformers does, each file whole or absent.

    Special tokens stand in the text that the chat template makes: the tokenizer is changed so that it adds none to it.
    A warning says so where a tokenizer keeps adding some.

    Args:
        model: The model.
        tokenizer: The tokenizer.
        folder: The folder, which is made where there is none. Weights of an earlier model in it are replaced.

    Returns:
        The names of the files that were written.
    """
    if hasattr(model, "score"):
        model.config.sentence_transformers = {**(getattr(model.config, _SENTENCES, None) or {}), **ACTIVATION}
    add_no_tokens(tokenizer)
    with quiet_transformers(), whole_files(folder) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        _tell_earlier_versions(unfinished / _TOKENIZER)
        wrong = _compared(tokenizer, unfinished)
        written = files_of(unfinished)
    for path in (path for pattern in (*CHECKPOINT_WEIGHTS, INDEX) for path in folder.glob(pattern)):
        if path.name not in written:  # in another number of parts
            path.unlink()
    if wrong:
        warn_caller(
            f"{folder}: {wrong}; give other programs token ids of apply_chat_template(messages, tokenize=True), or "
            "text with add_special_tokens=False"
        )
    return written


def add_no_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Change a tokenizer of the library tokenizers so that it adds no special tokens to a text by itself."""
    from tokenizers import processors

    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not backend.num_special_tokens_to_add(False):
        return
    own = backend.post_processor
    parts = json.loads(backend.to_str())["post_processor"].get("processors", ())
    kept = [own[number] for number in range(len(parts)) if not own[number].num_special_tokens_to_add(False)]
    nothing = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    backend.post_processor = processors.Sequence([*kept, nothing]) if kept else nothing


def difference_of_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    """Say in what the tokens of a saved tokenizer differ from those of training, or "" if they do not.

    A saved tokenizer is used in two ways: on messages, by its chat template, and on the text that the template makes,
    by its own rules for special tokens. Both have to give what `encode` gives.

    Args:
        tokenizer: The tokenizer of training.
        folder: The folder that it was saved to.
    """
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    if not tokenizer.chat_template:
        return ""
    try:
        text = render(tokenizer, SAMPLE)
    except Refused:  # of a template that takes no such conversation, as `train` has said of its rows
        return ""
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    if saved.apply_chat_template(SAMPLE, tokenize=True, return_dict=False) != expected:
        return "the saved tokenizer makes other tokens of messages than training had"
    if saved(text)["input_ids"] != expected:
        return "the saved tokenizer adds tokens of its own to the text of its chat template"
    return ""


def _compared(tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    """`difference_of_tokens`, or why it is not known: a trained model is saved in any case."""
    try:
        return difference_of_tokens(tokenizer, folder)
    except Exception as error:  # of tokenizers of others
        why = first_line(error) or type(error).__name__
        return f"the saved tokenizer could not be compared with that of training ({why})"


def _tell_earlier_versions(path: Path) -> None:
    """Write into a configuration of a tokenizer that it adds no tokens: transformers 4 looks nowhere else."""
    told = json.loads(path.read_text(encoding="utf-8"))
    told |= dict.fromkeys(_OWN, False)
    write_whole(path, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
