"""Embed conversations with a frozen language model, and write the embeddings to a file."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from irm_fast.data.outputs import check_suffix
from irm_fast.data.signals import RewardSpec
from irm_fast.embeddings.store import Source, about, merge_parts
from irm_fast.models.backbone import check_weights, first_line, is_stored_in, model_config, quiet_transformers
from irm_fast.models.batches import Collator, TokenizedRows
from irm_fast.models.packed import packed_attention
from irm_fast.models.parts import Work, check_target, write_in_parts
from irm_fast.models.passes import Passes, default_device, place, resolve_precision
from irm_fast.models.processes import from_main_process
from irm_fast.models.rendering import check_rendering
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.models.threads import threads_for
from irm_fast.models.tokens import tokenise

if TYPE_CHECKING:
    from irm_fast.data.messages import Messages

POOLINGS = ("auto", "last", "mean")
DTYPES = ("float32", "bfloat16")
_SAMPLE = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "It depends."}]


class Embedder:
    """A frozen language model, on the GPU if there is one, that turns each conversation into a vector.

    Args:
        model: A folder or hub id. A decoder reads conversations through its chat template, as in training; an encoder
            reads plain text, "User: ...\\n\\nAssistant: ...".
        pooling: "last", the state at the last token, which `ImplicitRewardModel` reads (decoders only); "mean", the
            mean over all tokens that are not padding; "auto", "last" for decoders and "mean" for encoders.
        max_length: The largest number of tokens; longer conversations lose their beginning. The model's own limit may
            reduce it.
        precision: The dtype of weights and states: "float32", "bfloat16", or "auto", bfloat16 on a GPU.

    Attributes:
        reward_model: The decoder as a reward model; None for an encoder.
        body: The transformer that computes the token states.
        tokenizer: The tokenizer of the model.
        source: How the embeddings are made, for the file that holds them.
        device: Where the model runs.

    Raises:
        ValueError: `pooling` or `precision` is unknown, the model or its tokenizer cannot be loaded, the model is an
            encoder-decoder, or it is an encoder and `pooling` is "last".
    """

    def __init__(
        self, model: str | Path, *, pooling: str = "auto", max_length: int = 1024, precision: str = "auto"
    ) -> None:
        _check_choice("pooling", pooling, POOLINGS)
        self.device = default_device()
        precision = resolve_precision(precision, self.device)
        name = str(Path(model).expanduser().resolve()) if Path(model).expanduser().is_dir() else str(model)
        self.reward_model: ImplicitRewardModel | None = None  # of a decoder
        computed = getattr(torch, precision)
        if _scores_its_last_token(name):
            spec = RewardSpec("constant", max_length=max_length)
            self.reward_model = ImplicitRewardModel.from_backbone(name, spec, _exact_dtype(name, computed))
            self.body: Any = self.reward_model.classifier.base_model
            self.tokenizer, max_length = self.reward_model.tokenizer, self.reward_model.spec.max_length
        elif pooling == "last":
            raise ValueError(
                f"pooling: got 'last'; {name!r} is an encoder: no token stands for its text; expected mean"
            )
        else:
            self.body, self.tokenizer = _load_encoder(name, _exact_dtype(name, computed))
            max_length = min(max_length, _position_limit(self.body.config), self.tokenizer.model_max_length)
        pooling = ("last" if self.reward_model else "mean") if pooling == "auto" else pooling
        kind = "decoder" if self.reward_model else "encoder"
        ids, _ = self._tokenise([_SAMPLE], max_length)
        mark = fingerprint(self.body, ids[0])
        self.source = Source(name, kind, pooling, max_length, precision, "float32", mark)
        place(self.body, self.device, computed)
        (self.reward_model or self.body).to(self.device).eval()

    @property
    def width(self) -> int:
        """The length D of an embedding."""
        return (
            self.reward_model.classifier.score.in_features if self.reward_model else int(self.body.config.hidden_size)
        )

    def embed(self, conversations: Sequence[Messages], passes: Passes | None = None) -> tuple[Tensor, int]:
        """Embed conversations; those of similar length share a forward pass, packed where the model takes packs.

        Args:
            conversations: N lists of messages.
            passes: How they go through the model. None: `Passes()`.

        Returns:
            The embeddings (float32, on the CPU) of shape (N, D), and how many conversations exceeded `max_length`.
        """
        passes = passes or Passes()
        ids, truncated = passes.tokenise(conversations, lambda some: self._tokenise(some, self.source.max_length))
        if not ids:
            return torch.empty(0, self.width), 0
        with self._attention() as packed:
            collate = Collator(self.tokenizer.pad_token_id, packed=packed)
            (vectors,) = passes.run(TokenizedRows(ids), collate, self.device, lambda batch: [self._pool(**batch)])
        return torch.from_numpy(vectors), truncated

    def check(self, ids: Sequence[str], conversations: Sequence[Messages]) -> None:
        """Check that the chat template of a decoder takes all conversations: `check_rendering`."""
        if self.reward_model:
            check_rendering(self.tokenizer, ids, conversations)

    @contextmanager
    def _attention(self) -> Iterator[bool]:
        """A context with the fastest attention; gives whether it takes packs. Encoders take padded rows alone."""
        if self.reward_model is None:
            with threads_for(self.body) if self.device.type == "cpu" else nullcontext():
                yield False
            return
        dtype, every_token = getattr(torch, self.source.precision), self.source.pooling != "last"
        with packed_attention(self.reward_model, dtype=dtype, every_token=every_token):
            yield self.reward_model.packed

    def _pool(self, input_ids: Tensor, attention_mask: Tensor | None = None, **packed: Any) -> Tensor:
        """Return embeddings (n, D), float32, of a batch of `Collator`."""
        if self.reward_model and self.source.pooling == "last":
            return self.reward_model.pool(input_ids, attention_mask, **packed)
        cache = {"use_cache": False} if self.reward_model else {}
        states = self.body(
            input_ids=input_ids, attention_mask=attention_mask, **cache, **packed
        ).last_hidden_state.float()
        if attention_mask is None:
            lengths = packed["cu_seq_lens_q"].diff()
            return torch.segment_reduce(states[0], "mean", lengths=lengths, unsafe=True)
        weight = (attention_mask / attention_mask.sum(1, keepdim=True))[:, None]
        return (weight @ states).squeeze(1)

    def _tokenise(self, conversations: Sequence[Messages], max_length: int) -> tuple[list[np.ndarray], int]:
        """Return the token ids (int32) of each conversation, and how many of them lost their beginning."""
        if self.reward_model:
            return tokenise(self.tokenizer, conversations, max_length)
        texts = [
            "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in row) for row in conversations
        ]
        rows = self.tokenizer(texts, verbose=False)["input_ids"] if texts else []
        long = [i for i, row in enumerate(rows) if len(row) > max_length]
        if long:  # cut by the tokenizer, which keeps the special tokens at both ends
            cut = self.tokenizer([texts[i] for i in long], truncation=True, max_length=max_length)["input_ids"]
            for i, row in zip(long, cut, strict=True):
                rows[i] = row
        return [np.array(row, dtype=np.int32) for row in rows], len(long)


def fingerprint(model: nn.Module, ids: np.ndarray) -> str:
    """Hash 64 numbers of every weight tensor of a model, together with the token ids of a sample.

    The hash is cheap, and it depends neither on where the model is stored nor on how its files are split. Fine-tuning
    changes every tensor, and so the hash.

    Args:
        model: The model.
        ids: Token ids (int32) of a sample text, of shape (T,), as the tokenizer of the model gives them.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(ids.tobytes(), digest_size=16)
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        some = flat[:: max(1, len(flat) // 64)][:64]  # not the last ones: a new padding token has random weights
        digest.update(f"{name} {tuple(weight.shape)}".encode() + some.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def write_embeddings(
    ids: Sequence[str],
    messages: Sequence[Messages],
    embedder: Embedder,
    out: str | Path,
    *,
    batch_size: int | None = None,
    token_budget: int | None = None,
    dtype: str = "float32",
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    distributed: bool = False,
) -> int:
    """Embed N rows into a file, in parts of 4,096 rows.

    An interrupted run leaves its finished parts in the folder `out` + ".parts".

    Args:
        ids: The ids of the N rows.
        messages: The conversations of the N rows.
        embedder: The model that embeds them.
        out: The file to write; its name ends in ".safetensors".
        batch_size: The number of conversations per forward pass, at most. None: no limit.
        token_budget: The number of tokens per forward pass, at most. None: 16,384 on a GPU, and 2,048 on a CPU.
        dtype: The dtype of the file: "float32" or "bfloat16".
        resume: Whether to keep the finished parts of an interrupted run.
        overwrite: Whether to replace an earlier file and its parts.
        progress: Whether to show a progress bar on stderr, if that is a terminal.
        distributed: Whether all processes of a torchrun share the rows. The first one writes.

    Returns:
        How many rows were truncated to the model's limit; rows of parts that were kept are not counted.

    Raises:
        ValueError: `dtype` is unknown, `out` may not be written, a part was made from other rows or with other
            settings, or an embedding is not finite.
    """
    _check_choice("dtype", dtype, DTYPES)
    out, source, truncated = Path(out), replace(embedder.source, dtype=dtype), 0
    check = partial(check_embeddings_file, out, resume=resume, overwrite=overwrite)
    from_main_process(check, distributed=distributed)
    embedder.check(ids, messages)

    def compute(rows: slice, passes: Passes) -> dict[str, Tensor]:
        nonlocal truncated
        vectors, longer = embedder.embed(messages[rows], passes)
        truncated += longer
        bad = torch.nonzero(~vectors.isfinite().all(1))
        if len(bad):
            raise ValueError(
                f"row {ids[rows][int(bad[0])]!r}: its embedding is not finite (nor those of {len(bad) - 1} more "
                f"rows); expected numbers; the model may be too imprecise in {source.precision}"
            )
        return {"embeddings": vectors.to(getattr(torch, dtype))}

    work = Work(out, ids, messages, about(source), compute, partial(merge_parts, out=out, source=source))
    passes = Passes(batch_size, token_budget, distributed, progress)
    write_in_parts(work, passes, resume=resume, overwrite=overwrite)
    return truncated


def check_embeddings_file(out: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Check that a file of embeddings may be written: `check_target`, and a name that ends in ".safetensors"."""
    check_suffix(out, ".safetensors")
    check_target(out, resume=resume, overwrite=overwrite)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless the value of the named argument is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}; expected one of {', '.join(choices)}")


def _scores_its_last_token(name: str) -> bool:
    """Whether a model is a decoder: its sequence classifier, if it has one, is linear in the last token's state.

    Raises:
        ValueError: The model is an encoder-decoder, or it has no configuration that transformers knows.
    """
    from transformers import AutoModelForSequenceClassification

    config = model_config(name)
    if config.is_encoder_decoder:
        raise ValueError(f"model {name!r}: {config.model_type} is an encoder with a decoder; expected either")
    try:
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except ValueError:  # no classifier of this kind
        return False
    return isinstance(getattr(classifier, "score", None), nn.Linear)


def _exact_dtype(name: str, computed: torch.dtype) -> torch.dtype:
    """The dtype to load a model in: that of computing if its files hold it, else float32, of which weights are exact.

    The fingerprint is that of the numbers in the files, whatever the model computes in.
    """
    return computed if is_stored_in(name, computed) else torch.float32


def _load_encoder(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load an encoder (`AutoModel`) in a dtype and its tokenizer, which pads on the right and truncates on the left.

    Raises:
        ValueError: The model or its tokenizer cannot be loaded, weights are missing, or there is no padding token.
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            model, report = AutoModel.from_pretrained(
                name, dtype=dtype, output_loading_info=True, trust_remote_code=False
            )
    except Exception as error:  # of many kinds, some of them from the tokenizers library
        raise ValueError(f"model {name!r}: not loadable to embed text: {first_line(error)}") from error
    check_weights(name, (key for key in report["missing_keys"] if not key.startswith("pooler.")))
    if tokenizer.pad_token_id is None:
        raise ValueError(f"model {name!r}: no padding token; expected pad_token in tokenizer_config.json")
    if hasattr(model, "pooler"):
        model.pooler = None  # not used, and of random weights where the checkpoint has none
    tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
    return model, tokenizer


def _position_limit(config: Any) -> int:
    """Return the largest number of positions that the configuration of a model allows."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize)
