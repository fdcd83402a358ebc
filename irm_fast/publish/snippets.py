"""How each program reads a saved model: a few lines to copy, and what to see to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_MESSAGES = (
    'messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "It depends."}]'  # of the card
)


class Named(NamedTuple):
    """What snippets say of a model.

    Attributes:
        name: Its folder or hub id.
        max_length: Its limit of tokens.
        bos: The BOS token that its texts begin with, or "".
        keeps_bos: Whether a row that training truncated kept it; in earlier versions it did not.
    """

    name: str
    max_length: int
    bos: str = ""
    keeps_bos: bool = True

    @property
    def kept(self) -> str:
        """The BOS token that long rows had in training, or ""."""
        return self.bos if self.keeps_bos else ""


class Snippet(NamedTuple):
    """How one program reads a model.

    Attributes:
        reader: The program.
        code: The lines to copy.
        caveat: What to see to, sentences in Markdown.
        language: Of the code.
    """

    reader: str
    code: str
    caveat: str
    language: str = "python"

    def in_markdown(self) -> str:
        """The snippet as a section of a Markdown page."""
        return f"### {self.reader}\n{self.caveat}\n\n```{self.language}\n{self.code}\n```\n"


def for_classifier(model: Named) -> Sequence[Snippet]:
    """How programs read an ordinary sequence classifier.

    Args:
        model: What the snippets say of it.
    """
    return (
        *(_transformers(model), _pipeline(model), _cross_encoder(model)),
        *(_trl(model), _openrlhf(model)),
        *(_vllm(model), _sglang(model), _verl(model)),
    )


def for_embeddings(model: Named, *, exportable: bool) -> Sequence[Snippet]:
    """How to read a reward on embeddings, which is no sequence classifier.

    Args:
        model: What the snippets say of it.
        exportable: Whether `irm-fast export --to sentence-transformers` takes it.
    """
    ours = Snippet(
        "irm_fast",
        f'import irm_fast\n\nmodel = irm_fast.load("{model.name}")\n{_MESSAGES}\n'
        "[reward] = irm_fast.score(model, [messages])",
        "The language model that makes the embeddings is loaded from where it was at training.",
    )
    before = f"# irm-fast export {model.name} --to sentence-transformers --out exported\n"
    after = for_sentences(model, "exported")
    return (ours, after._replace(code=before + after.code)) if exportable else (ours,)


def for_sentences(model: Named, name: str) -> Snippet:
    """How to read a reward on embeddings that was exported.

    Args:
        model: What the snippet says of it.
        name: The folder or hub id of the export.
    """
    code = f"""from sentence_transformers import SentenceTransformer

text = "User: Why?\\n\\nAssistant: It depends."
reward = SentenceTransformer("{name}").encode([text])[0, 0]"""
    caveat = (
        "It reads plain text, turns as `Role: content` with an empty line between them; what is longer than "
        f"{model.max_length} tokens loses its beginning, as in training."
    )
    return Snippet("sentence-transformers", code, caveat)


def _cut(model: Named) -> str:
    """What becomes of long rows where a tokenizer truncates them."""
    if not model.kept:
        return f"What is longer than {model.max_length} tokens loses its beginning, as in training."
    return (
        f"What is longer than {model.max_length} tokens loses its beginning, and with it `{model.kept}`, which our own "
        "cut keeps: rewards of such rows differ."
    )


def _ids(model: Named) -> str:
    """Lines that make token ids of messages, exactly as training did."""
    lines = "ids = tokenizer.apply_chat_template(messages, return_dict=False)\n"
    if not model.kept:
        return f"{lines}ids = ids[-{model.max_length}:]"
    return f"{lines}ids = ids[:1] + ids[-{model.max_length - 1}:] if len(ids) > {model.max_length} else ids"


def _at_once(model: Named) -> str:
    """A sentence on `truncation=True`, where it is something else."""
    if not model.kept:
        return " For several at once the tokenizer's `padding=True, truncation=True` do the same."
    return (
        " For several at once the tokenizer's `padding=True, truncation=True` do the same, but for long rows, which "
        f"lose their `{model.kept}`."
    )


def _transformers(model: Named) -> Snippet:
    code = f"""import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{model.name}")
model = AutoModelForSequenceClassification.from_pretrained("{model.name}", dtype=torch.float32).eval()
{_MESSAGES}
{_ids(model)}
with torch.no_grad():
    reward = model(torch.tensor([ids])).logits[0, 0].item()"""
    return Snippet("transformers", code, "Long rows are cut as in training." + _at_once(model))


def _pipeline(model: Named) -> Snippet:
    code = f"""from transformers import pipeline

classify = pipeline("text-classification", "{model.name}")
{_MESSAGES}
text = classify.tokenizer.apply_chat_template(messages, tokenize=False)
reward = classify(text, truncation=True)[0]["score"]"""
    return Snippet("transformers pipeline", code, f"The score is the reward itself, no probability. {_cut(model)}")


def _cross_encoder(model: Named) -> Snippet:
    code = f"""from sentence_transformers import CrossEncoder

{_MESSAGES}
reward = CrossEncoder("{model.name}").predict([messages])[0]"""
    caveat = (
        "From version 6 on it takes messages. Pairs of (prompt, answer) are read without the chat template: their "
        f"score is another number. {_cut(model)}"
    )
    return Snippet("sentence-transformers CrossEncoder", code, caveat)


def _trl(model: Named) -> Snippet:
    code = f"""from trl import GRPOConfig, GRPOTrainer

trainer = GRPOTrainer(
    model="POLICY",
    reward_funcs="{model.name}",
    train_dataset=dataset,  # its prompts are messages: [{{"role": "user", "content": ...}}]
    args=GRPOConfig(max_completion_length={min(256, max(1, model.max_length // 2))}),
)"""
    caveat = (
        "Prompts have to be messages: plain text is scored without the chat template, which is another number. TRL "
        f"does not truncate what it scores: keep prompt and completion together within {model.max_length} tokens."
    )
    return Snippet("TRL, GRPO", code, caveat)


def _openrlhf(model: Named) -> Snippet:
    caveat = (
        "The head is `score`, the keys of the backbone are `model.*`: both are found without further options. Leave "
        "`--reward.normalize_enable` out, as the checkpoint has no mean and standard deviation. In bfloat16, its "
        "default, rewards are rounded."
    )
    return Snippet("OpenRLHF", f"--reward.model_name_or_path {model.name}", caveat, "sh")


def _vllm(model: Named) -> Snippet:
    code = f"""# vllm serve {model.name} --runner pooling --max-model-len {model.max_length}
import requests
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{model.name}")
{_MESSAGES}
{_ids(model)}
sent = {{"model": "{model.name}", "input": ids, "use_activation": False}}
reward = requests.post("http://localhost:8000/classify", json=sent).json()["data"][0]["probs"][0]"""
    caveat = (
        "Send token ids, or the text of `apply_chat_template(messages, tokenize=False)`; the tokenizer adds nothing "
        "to it. `/score` applies no activation either, as `config.json` asks. Rows that are longer than the limit are "
        "refused: these lines cut them as training did. It takes 16 bits unless it is told `--dtype float32`."
    )
    return Snippet("vLLM", code, caveat)


def _sglang(model: Named) -> Snippet:
    launch = f"--model-path {model.name} --is-embedding --context-length {model.max_length}"
    code = f"""# python -m sglang.launch_server {launch}
import requests
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{model.name}")
{_MESSAGES}
{_ids(model)}
sent = {{"model": "{model.name}", "input": ids}}
reward = requests.post("http://localhost:30000/v1/embeddings", json=sent).json()["data"][0]["embedding"][0]"""
    caveat = "It reads `score.weight` at the last token and applies no activation. Long rows are cut as in training."
    return Snippet("SGLang", code, caveat)


def _verl(model: Named) -> Snippet:
    code = (
        f"reward_model.enable=True reward_model.use_reward_loop=True reward_model.model.path={model.name} "
        f"reward_model.rollout.name=vllm reward_model.rollout.prompt_length={model.max_length}"
    )
    caveat = "Its reward loop renders the chat template and posts the text to vLLM or SGLang."
    if model.bos:
        caveat += (
            f" It cuts `{model.bos}` off the text, and expects the tokenizer to add it again, which this one does not: "
            "rewards differ. Score in a reward function of your own, by token ids, for the exact number."
        )
    return Snippet("verl", code, caveat, "sh")
