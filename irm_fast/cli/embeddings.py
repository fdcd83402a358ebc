"""The command `embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from irm_fast.cli.options import BatchSize, Data


def embed(
    data: Data,
    model: Annotated[str, typer.Option(help="Folder or hub id of a decoder or an encoder with its tokenizer.")],
    out: Annotated[Path, typer.Option(help="The file to write, NAME.safetensors.")],
    pooling: Annotated[str, typer.Option(help="last (token), mean, or auto: last for decoders, else mean.")] = "auto",
    batch_size: BatchSize = 64,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens per row; longer rows lose their beginning.")] = 1024,
    precision: Annotated[str, typer.Option(help="Of the model: float32 or bfloat16.")] = "float32",
    dtype: Annotated[str, typer.Option(help="Of the file: float32 or bfloat16.")] = "float32",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file or an interrupted run.")] = False,
) -> None:
    """Write an embedding of every row: logs, ratings or pairs. `train --embeddings` learns from it."""
    from irm_fast.data.files import check_not_input
    from irm_fast.data.rated import read_conversations
    from irm_fast.embeddings.store import check_target

    check_not_input(out, data)
    folder = check_target(out, resume=resume, overwrite=overwrite)  # before the work, not after it
    ids, conversations = read_conversations(data)
    from irm_fast.embeddings.embedder import Embedder, write_embeddings

    embedder = Embedder(model, pooling=pooling, max_length=max_length, precision=precision)
    source = embedder.source
    typer.echo(f"{source.kind} {model}: {source.pooling} pooling, at most {source.max_length} tokens", err=True)
    how = {"batch_size": batch_size, "dtype": dtype, "resume": resume, "overwrite": overwrite}
    try:
        truncated = write_embeddings(ids, conversations, embedder, out, **how)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        if any(folder.glob("part-*.safetensors")):
            raise KeyboardInterrupt("--resume goes on from the last whole part") from None
        raise
    typer.echo(f"wrote {out}: {len(ids)} embeddings of {embedder.width} numbers")
    if truncated:
        typer.echo(f"  {truncated} rows were longer than {source.max_length} tokens and lost their beginning")
