"""The command `embed`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from irm_fast.cli.answers import Answer, path_of
from irm_fast.cli.help import example
from irm_fast.cli.options import BatchSize, Data, PrecisionOption, Progress, Resume, TokenBudget, with_text_settings
from irm_fast.data.telling import tell
from irm_fast.training.config import log_settings


@example("irm-fast embed --data log.jsonl --model PATH_OR_HUB_ID --out log.safetensors")
@with_text_settings
def embed(
    data: Data,
    model: Annotated[str, typer.Option(help="Folder or hub id of a decoder or an encoder with its tokenizer.")],
    out: Annotated[Path, typer.Option(help="To write: NAME.safetensors, or a folder of such files.")],
    pooling: Annotated[
        Literal["auto", "last", "cls", "mean"],
        typer.Option(
            help="last (token), cls (first), mean, or auto: as the model's files say, else last for decoders."
        ),
    ] = "auto",
    batch_size: BatchSize = None,
    token_budget: TokenBudget = None,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens per row; longer rows lose their oldest text.")] = 1024,
    precision: PrecisionOption = "auto",
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="The numbers of the file.")] = "float32",
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows of each file, where --out is a folder.")] = 16_384,
    resume: Resume = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier or interrupted run.")] = False,
    progress: Progress = True,
    **settings: Any,
) -> Answer | None:
    """Write an embedding of every row: logs, ratings or pairs. `train --embeddings` learns from it."""
    from irm_fast.data.conversations import read_conversations
    from irm_fast.data.reading.sources import check_not_input

    check_not_input(out, data)
    from irm_fast.embeddings.embedder import Embedder
    from irm_fast.embeddings.store import date_of_parts
    from irm_fast.embeddings.writing import check_embeddings_target, write_embeddings
    from irm_fast.models.processes import from_main_process, is_first, launched

    how = {"batch_size": batch_size, "token_budget": token_budget, "dtype": dtype, "progress": progress}
    how |= {"shard_rows": shard_rows, "resume": resume, "overwrite": overwrite}
    with launched() as distributed:
        check = partial(check_embeddings_target, out, resume=resume, overwrite=overwrite)
        from_main_process(check, distributed=distributed)  # before the work, not after it
        ids, conversations = read_conversations(data, log_settings(None, settings).declared)
        date = date_of_parts(out) if resume else None
        embedder = Embedder(model, pooling=pooling, max_length=max_length, precision=precision, date=date)
        source = embedder.source
        if is_first():
            tell(f"{source.kind} {model}: {source.pooling} pooling, at most {source.max_length} tokens")
        truncated = write_embeddings(ids, conversations, embedder, out, distributed=distributed, **how)  # type: ignore[arg-type]
    if not is_first():
        return None
    said = [f"wrote {out}: {len(ids)} embeddings of {embedder.width} numbers"]
    if truncated:
        said.append(f"  {truncated} rows were longer than {source.max_length} tokens and lost their beginning")
    found = {"wrote": path_of(out), "rows": len(ids), "width": embedder.width, "truncated": truncated}
    return Answer(found | {"source": source}, said)
