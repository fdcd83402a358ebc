"""A frozen language model that turns conversations into vectors."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from irm_fast.data.signals import RewardSpec
from irm_fast.embeddings.sentence_files import SentenceFiles, read_sentence_files
from irm_fast.embeddings.store import Source
from irm_fast.models.backbone import check_weights, is_stored_in, model_config, weight_files
from irm_fast.models.batches import Collator, TokenizedRows
from irm_fast.models.foreign_files import loading
from irm_fast.models.packed import packed_attention
from irm_fast.models.passes import Passes, default_device, place, resolve_precision
from irm_fast.models.rendering import RenderingCheck
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.models.sizes import check_weights_fit
from irm_fast.models.template import date_of
from irm_fast.models.threads import threads_for
from irm_fast.models.tokens import tokenise

if TYPE_CHECKING:
    from irm_fast.data.messages import Messages

POOLINGS = ("auto", "last", "mean", "cls")
_SAMPLE = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "It depends."}]
_TEXT = "It depends: 3.14 \N{GREEK SMALL LETTER PI}, caf\u00e9\n\n\tdef f(x): return x  # \u4f60\u597d \U0001f642"
_WITH_TOKENIZER = "2:"  # begins fingerprints of weights and tokenizer; without it they are of earlier versions


class Embedder:
    """A frozen language model, on the GPU if there is one, that turns each conversation into a vector.

    Args:
        model: A folder or hub id. A decoder reads conversations through its chat template, as in training; an encoder
            reads plain text, "User: ...\\n\\nAssistant: ...".
        pooling: "last", the state at the last token, which `ImplicitRewardModel` reads (decoders only); "mean", the
            mean over all tokens that are not padding; "cls", the state at the first token (encoders only); "auto", what
            the files of sentence-transformers in the folder ask for, else "last" for decoders and "mean" for encoders.
        max_length: The largest number of tokens; longer conversations lose their oldest text. The model's own limit may
            reduce it.
        precision: The dtype of weights and states: "float32", "bfloat16", or "auto", bfloat16 on a GPU.
        files: What files of sentence-transformers say. None: those of the folder.
        date: The date that a chat template prints, as of `template.set_template`.
        keeps_bos: Whether a truncated text keeps the BOS token that a chat template begins with.

    Attributes:
        reward_model: The decoder as a reward model; None for an encoder.
        body: The transformer that computes the token states.
        tokenizer: The tokenizer of the model.
        source: How the embeddings are made, for the file that holds them.
        device: Where the model runs.
        earlier_fingerprints: Those that earlier versions gave it in the place of `source.fingerprint`.

    Raises:
        ValueError: `pooling` or `precision` is unknown, the model or its tokenizer cannot be loaded, the model is an
            encoder-decoder, or `pooling` or what the folder asks for does not go with it.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        pooling: str = "auto",
        max_length: int = 1024,
        precision: str = "auto",
        files: SentenceFiles | None = None,
        date: str | None = None,
        keeps_bos: bool = True,
    ) -> None:
        check_choice_of("pooling", pooling, POOLINGS)
        self.device = default_device()
        precision = resolve_precision(precision, self.device)
        name = str(Path(model).expanduser().resolve()) if Path(model).expanduser().is_dir() else str(model)
        self.reward_model: ImplicitRewardModel | None = None  # of a decoder
        computed = getattr(torch, precision)
        decodes, files = _scores_its_last_token(name), read_sentence_files(name) if files is None else files
        pooling = _pooling(name, pooling, files, decodes=decodes)
        max_length = min(max_length, files.max_length or max_length)
        if decodes:
            spec = RewardSpec("constant", max_length=max_length)
            self.reward_model = ImplicitRewardModel.from_backbone(name, spec, _exact_dtype(name, computed), date=date)
            self.body: Any = self.reward_model.classifier.base_model
            self.tokenizer, max_length = self.reward_model.tokenizer, self.reward_model.spec.max_length
        else:
            self.body, self.tokenizer = _load_encoder(name, _exact_dtype(name, computed))
            max_length = min(max_length, _position_limit(self.body), self.tokenizer.model_max_length)
        template = self.tokenizer.get_chat_template() if decodes else ""
        self.source = Source(
            model=name,
            kind="decoder" if decodes else "encoder",
            pooling=pooling,
            max_length=max_length,
            precision=precision,
            dtype="float32",
            fingerprint=fingerprint(self.body, self.tokenizer, template, whole=not decodes),
            normalize=files.normalize,
            prompt="" if decodes else files.prompt,
            lower_case=not decodes and files.lower_case,
            date=date_of(template),
            keeps_bos=decodes and keeps_bos,
        )
        self.earlier_fingerprints = (
            fingerprint(self.body, self.tokenizer, template),
            _earlier_fingerprint(self.body, self._tokenise([_SAMPLE], max_length)[0][0]),
        )
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

    def count_tokens(self, conversations: Sequence[Messages]) -> np.ndarray:
        """Return the number of tokens of each conversation before any is cut, (N,)."""
        rows, _ = self._tokenise(conversations, sys.maxsize)
        return np.array(list(map(len, rows)), np.int64)

    def rendering(self) -> RenderingCheck | None:
        """A check that the chat template of a decoder takes conversations; None of an encoder, which has none."""
        return RenderingCheck(self.tokenizer) if self.reward_model else None

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
        vectors = self._pooled(input_ids, attention_mask, **packed)
        return nn.functional.normalize(vectors) if self.source.normalize else vectors

    def _pooled(self, input_ids: Tensor, attention_mask: Tensor | None, **packed: Any) -> Tensor:
        """Return what `_pool` does, before it is normalised."""
        if self.reward_model and self.source.pooling == "last":
            return self.reward_model.pool(input_ids, attention_mask, **packed)
        cache = {"use_cache": False} if self.reward_model else {}
        states = self.body(
            input_ids=input_ids, attention_mask=attention_mask, **cache, **packed
        ).last_hidden_state.float()
        if attention_mask is None:
            lengths = packed["cu_seq_lens_q"].diff()
            return torch.segment_reduce(states[0], "mean", lengths=lengths, unsafe=True)
        if self.source.pooling in ("cls", "last"):  # padding is on the right
            at = attention_mask.sum(1) - 1 if self.source.pooling == "last" else torch.zeros_like(attention_mask[:, 0])
            return states[torch.arange(len(states), device=at.device), at]
        weight = (attention_mask / attention_mask.sum(1, keepdim=True))[:, None]
        return (weight @ states).squeeze(1)

    def _tokenise(self, conversations: Sequence[Messages], max_length: int) -> tuple[list[np.ndarray], int]:
        """Return the token ids (int32) of each conversation, and how many of them lost their beginning."""
        if self.reward_model:
            return tokenise(self.tokenizer, conversations, max_length, keeps_bos=self.source.keeps_bos)
        texts = [self.source.prompt + plain_text(row) for row in conversations]
        if self.source.lower_case:
            texts = [text.lower() for text in texts]
        rows = self.tokenizer(texts, verbose=False)["input_ids"] if texts else []
        long = [i for i, row in enumerate(rows) if len(row) > max_length]
        if long:  # cut by the tokenizer, which keeps the special tokens at both ends
            cut = self.tokenizer([texts[i] for i in long], truncation=True, max_length=max_length)["input_ids"]
            for i, row in zip(long, cut, strict=True):
                rows[i] = row
        return [np.array(row, dtype=np.int32) for row in rows], len(long)


def plain_text(messages: Messages) -> str:
    """A conversation as an encoder reads it, without the text that its model puts before all."""
    return "\n\n".join(map(_plain, messages))


def _plain(turn: Mapping[str, Any]) -> str:
    """A turn as an encoder reads it."""
    calls = json.dumps(turn["tool_calls"], ensure_ascii=False) if turn.get("tool_calls") else ""
    return f"{turn['role'].capitalize()}: {turn['content']}{calls}"


def fingerprint(model: nn.Module, tokenizer: Any, template: str = "", *, whole: bool = True) -> str:
    """Hash 64 numbers of every weight tensor of a model, together with what its tokenizer does.

    The hash is cheap, and it depends neither on where the model is stored nor on how its files are split. Fine-tuning
    changes every tensor, and so the hash; another day does not.

    Args:
        model: The model.
        tokenizer: Its tokenizer: the hash is of the vocabulary, and of the token ids of a text.
        template: The chat template, with the date that it prints; "" if it is not read.
        whole: Whether special tokens that the tokenizer adds by itself count. Decoders do not read them, and a saved
            checkpoint has a tokenizer that adds none.

    Returns:
        "2:" and 32 hexadecimal digits.
    """
    vocabulary = sorted(tokenizer.get_vocab().items())
    ids = [tokenizer(_TEXT, add_special_tokens=special)["input_ids"] for special in (False, whole)]
    digest = hashlib.blake2b(json.dumps([vocabulary, ids, template]).encode(), digest_size=16)
    _add_weights(digest, model)
    return _WITH_TOKENIZER + digest.hexdigest()


def _earlier_fingerprint(model: nn.Module, ids: np.ndarray) -> str:
    """The fingerprint of versions that hashed the token ids (T,) int32 of a conversation in place of the tokenizer."""
    digest = hashlib.blake2b(ids.tobytes(), digest_size=16)
    _add_weights(digest, model)
    return digest.hexdigest()


def _add_weights(digest: Any, model: nn.Module) -> None:
    """Add 64 numbers of every weight tensor of a model to a hash."""
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        some = flat[:: max(1, len(flat) // 64)][:64]  # not the last ones: a new padding token has random weights
        digest.update(f"{name} {tuple(weight.shape)}".encode() + some.float().cpu().numpy().tobytes())


def check_choice_of(name: str, value: str, choices: Sequence[str]) -> None:
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
        with loading(f"model {name!r}: no classifier of this kind"), torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except ValueError:
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

    with loading(f"model {name!r}: not loadable to embed text"), torch.device("meta"):
        skeleton = AutoModel.from_config(model_config(name), dtype=dtype)
    check_weights_fit(skeleton, weight_files(name), name)
    with loading(f"model {name!r}: not loadable to embed text"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model, report = AutoModel.from_pretrained(name, dtype=dtype, output_loading_info=True, trust_remote_code=False)
    check_weights(name, (key for key in report["missing_keys"] if not key.startswith("pooler.")))
    if tokenizer.pad_token_id is None:
        raise ValueError(f"model {name!r}: no padding token; expected pad_token in tokenizer_config.json")
    if hasattr(model, "pooler"):
        model.pooler = None  # not used, and of random weights where the checkpoint has none
    tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
    return model, tokenizer


def _position_limit(body: Any) -> int:
    """Return the largest number of tokens for which a model has positions.

    Where positions are numbered from behind that of the padding, as in RoBERTa, there are fewer than rows of them.
    """
    limit = int(getattr(body.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize)
    for name, module in body.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            limit = min(limit, module.num_embeddings - module.padding_idx - 1)
    return limit


def _pooling(name: str, pooling: str, files: SentenceFiles, *, decodes: bool) -> str:
    """The pooling of a model, given what is asked for and what its files say.

    Raises:
        ValueError: It does not go with the model, or is not available.
    """
    asked = files.pooling if pooling == "auto" else ""
    chosen = (asked or ("last" if decodes else "mean")) if pooling == "auto" else pooling
    if chosen not in POOLINGS:
        raise ValueError(
            f"pooling: the files of {name!r} ask for {chosen!r}, which is not available; expected one of "
            f"{', '.join(POOLINGS[1:])}, by --pooling"
        )
    if decodes and chosen == "cls":
        raise ValueError(
            f"pooling: got 'cls'; {name!r} is a decoder: its first token sees no text; expected last or mean"
        )
    if not decodes and chosen == "last" and not asked and files.pooling != "last":
        raise ValueError(
            f"pooling: got 'last'; {name!r} is an encoder: no token stands for its text; expected mean or cls"
        )
    return chosen
