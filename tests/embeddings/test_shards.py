"""Embeddings in several arrays or files: fits that pass over them equal those in memory, by any number of processes."""

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from irm_fast.embeddings import blocks, inputs
from irm_fast.embeddings.shards import Shards, files_of, shards_of
from irm_fast.embeddings.standardised import Standardised, moments_of
from irm_fast.embeddings.store import Source, about, open_embeddings, read_embeddings
from irm_fast.models.parts import row_hash, write_part
from tests.embeddings.embedding_cases import model
from tests.embeddings.sharded_fit import BLOCK, CASES, LOG, ROWS, fitted
from tests.embeddings.sharded_fit import main as fit_as_process
from tests.training import forked

ENDS = [0, 130, 131, 900, ROWS]  # of shards of uneven sizes
SHARDS = [LOG.x[first:end] for first, end in pairwise(ENDS)]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of which a small log has several; nothing is held in memory."""
    monkeypatch.setattr(blocks, "ROWS", BLOCK)
    monkeypatch.setattr(inputs, "HELD", 0)


def save(folder, arrays=SHARDS):
    folder.mkdir(exist_ok=True)
    for number, array in enumerate(arrays):
        np.save(folder / f"part-{number:05}-of-{len(arrays):05}.npy", array)
    return folder


@pytest.mark.filterwarnings("ignore:one signal:UserWarning", "ignore:hidden_layers:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_a_fit_over_shards_is_that_in_memory(case, small_blocks):
    """Both take the same sums in the same order."""
    whole, in_memory = fitted(case, LOG.x)
    shared, in_shards = fitted(case, SHARDS)
    assert shared.diagnosis_.kind == whole.diagnosis_.kind
    assert in_memory["reward"].std() > 0.1
    for name, values in in_memory.items():
        np.testing.assert_allclose(in_shards[name], values, rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(in_shards["reward"], in_memory["reward"])


@pytest.mark.filterwarnings("ignore:one signal:UserWarning")
@pytest.mark.parametrize("case", ["two signals", "one signal", "features alone", "joint", "misclicks", "users"])
def test_a_fit_in_blocks_is_about_that_in_one_block(case, monkeypatch):
    """Sums are rounded otherwise, and the search for the optimum ends somewhere else nearby."""
    _, whole = fitted(case, LOG.x)
    monkeypatch.setattr(blocks, "ROWS", BLOCK)
    _, blockwise = fitted(case, LOG.x)
    for name in ("reward", "propensity", "nll", "lower"):
        assert np.abs(blockwise[name] - whole[name]).max() < 0.02 * whole["reward"].std(), name


def test_two_processes_fit_what_one_fits(tmp_path, small_blocks):
    cases, folder = ["two signals", "features alone", "users", "groups, weights"], save(tmp_path / "shards")
    forked.run((str(folder), *cases), 2, tmp_path, fit_as_process)
    for case in cases:
        fit, alone = fitted(case, folder)
        first, second = (dict(np.load(folder / f"{case}.{rank}.npz")) for rank in (0, 1))
        assert first.pop("kind") == second.pop("kind") == fit.diagnosis_.kind
        for name, values in alone.items():
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
            np.testing.assert_allclose(first[name], values, rtol=1e-6, atol=1e-6, err_msg=f"{case} {name}")


def test_forms_of_shards(tmp_path, monkeypatch):
    """Paths and arrays may be mixed; few rows are held in memory, where a fit is the one of the array."""
    folder = save(tmp_path / "shards")
    files = [folder / f"part-{number:05}-of-00004.npy" for number in range(4)]
    tensors = tmp_path / "e.safetensors"
    save_file({"embeddings": torch.from_numpy(LOG.x).bfloat16()}, tensors)
    forms = [folder, str(folder), f"{folder}/*.npy", files, [*SHARDS[:2], *files[2:]], np.load(files[2], mmap_mode="r")]
    forms += [[torch.from_numpy(shard).double() for shard in SHARDS], Shards.of_array(LOG.x)]
    for form in forms:
        rows = shards_of(form)
        expected = SHARDS[2] if isinstance(form, np.memmap) else LOG.x
        np.testing.assert_array_equal(rows.read(0, len(rows)), expected)
        assert rows.read(0, len(rows)).dtype == torch.float32
    rounded = torch.from_numpy(LOG.x).bfloat16().float()
    np.testing.assert_array_equal(shards_of(tensors).read(0, ROWS), rounded)
    for array in (LOG.x, LOG.x.tolist(), list(LOG.x), torch.from_numpy(LOG.x)):
        assert shards_of(array) is None
    want = model(n_folds=2).fit(LOG.x, LOG.feedback)
    got = model(n_folds=2).fit(folder, LOG.feedback)
    np.testing.assert_array_equal(got.decision_function(folder), want.decision_function(LOG.x))
    np.testing.assert_array_equal(got.predict_propensity(files), want.predict_propensity(LOG.x))
    assert got.score(folder, LOG.preferred) == want.score(LOG.x, LOG.preferred)


def test_rows_of_shards_in_any_order():
    rows = shards_of(SHARDS)
    order = np.random.default_rng(0).permutation(ROWS)
    mixed = rows[order]
    np.testing.assert_array_equal(mixed.read(100, 1400), LOG.x[order][100:1400])
    np.testing.assert_array_equal(mixed.at(np.array([5, 2])), LOG.x[order][[5, 2]])
    np.testing.assert_array_equal(mixed[order > 700][3:9].read(0, 6), LOG.x[order][order > 700][3:9])
    np.testing.assert_array_equal(np.asarray(rows[129:132]), LOG.x[129:132])
    assert mixed.where(int(np.flatnonzero(order == 131)[0])) == "array 2, row 0"


def test_moments_and_a_column_beside_in_blocks(small_blocks):
    rows = shards_of(SHARDS)
    mean, deviation = moments_of(rows)
    np.testing.assert_allclose(mean, LOG.x.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(deviation, LOG.x.std(0, dtype=np.float64), rtol=1e-12)
    scaler = inputs.Inputs(rows, False, False).scaler(torch.device("cpu"))
    passed, held = (Standardised.of(rows, scaler, hold=hold) for hold in (False, True))
    assert passed.held is None and not passed.blocks.is_one
    column, some = torch.arange(ROWS).float(), torch.tensor([700, 3, 1499])
    for x in (passed.beside(column), held.beside(column)):
        np.testing.assert_array_equal(x.at(some), torch.cat([held.held, column[:, None]], 1)[some])
        np.testing.assert_array_equal(x.map(lambda _, part: part[:, -1]), column)
        np.testing.assert_array_equal(x.map(lambda _, part: part[:, -1], some.sort()[0]), some.sort()[0])


def test_what_does_not_go_together_is_refused(tmp_path, small_blocks):
    folder = save(tmp_path / "shards")
    wide, wrong = [*SHARDS[:3], LOG.x[900:, :3]], [shard.copy() for shard in SHARDS]
    wrong[2][5, 1] = np.nan
    with pytest.raises(ValueError, match=re.escape("X: array 3 has shape (600, 3)") + ".*array 0 has"):
        model().fit(wide, LOG.feedback)
    for form, place in ((wrong, "array 2, row 5"), (save(tmp_path / "wrong", wrong), "part-00002-of-00004.npy, row 5")):
        with pytest.raises(ValueError, match=f"X: .*{place} holds NaN.*expected finite"):
            model().fit(form, LOG.feedback)
        with pytest.raises(ValueError, match=f"X: .*{place} holds NaN"):
            model(n_folds=2).fit(LOG.x, LOG.feedback).decision_function(form)
    with pytest.raises(ValueError, match=r"feedback: got shape \(1500, 2\)"):
        model().fit(SHARDS[:3], LOG.feedback)
    with pytest.raises(ValueError, match="X has 4 features; expected 3 features, as in fit"):
        model(n_folds=2).fit(LOG.x[:, :3], LOG.feedback).decision_function(folder)
    (folder / "part-00002-of-00004.npy").unlink()
    with pytest.raises(ValueError, match="1 of the 4 files of 'part' are missing, the first of them number 2"):
        model().fit(folder, LOG.feedback)
    np.save(folder / "more.npy", LOG.x)
    np.save(folder / "part-00002-of-00004.npy", LOG.x)
    with pytest.raises(ValueError, match="files of several sets"):
        files_of(folder)
    for path in (tmp_path / "gone.npy", tmp_path / "gone.safetensors"):
        with pytest.raises(ValueError, match="gone"):
            model().fit(path, LOG.feedback)
    with pytest.raises(ValueError, match="no embeddings; expected files that end in"):
        model().fit(f"{tmp_path}/none*.npy", LOG.feedback)
    with pytest.raises(ValueError, match=r"other.safetensors: holds other; expected a tensor named 'embeddings'"):
        save_file({"other": torch.zeros(3, 2)}, tmp_path / "other.safetensors")
        model().fit(tmp_path / "other.safetensors", LOG.feedback)


def test_numbered_files_are_in_the_order_of_their_numbers(tmp_path):
    for number in range(11):
        np.save(tmp_path / f"shard_{number}.npy", LOG.x[number : number + 1])
    np.testing.assert_array_equal(shards_of(tmp_path).read(0, 11), LOG.x[:11])


def test_networks_over_shards_are_said_to_be_slow(small_blocks):
    with pytest.warns(UserWarning, match="hidden_layers: networks read single rows of the files in a random order"):
        fitted("networks", SHARDS)


def test_embeddings_of_several_files_are_found_by_text(make_log, tmp_path):
    source = Source("model", "decoder", "last", 100, "float32", "float32", "2:0")
    log, x = make_log(30), np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    hashes, order = row_hash(None, log.messages), np.random.default_rng(1).permutation(30)
    for number, rows in enumerate(np.split(np.arange(30), [7, 19])):
        name = tmp_path / f"embeddings-{number:05}-of-00003.safetensors"
        write_part(name, {"embeddings": torch.from_numpy(x[rows])}, hashes[rows], about(source))
    np.testing.assert_array_equal(read_embeddings(tmp_path, log.ids, log.messages), x)
    parts = [log.subset(order[:20]), log.subset(order[20:25])]
    found = open_embeddings(tmp_path, [(part.ids, part.messages) for part in parts])
    np.testing.assert_array_equal(found.read(0, 25), x[order[:25]])
    other = tmp_path / "embeddings-00001-of-00003.safetensors"
    rows = slice(7, 19)
    write_part(other, {"embeddings": torch.from_numpy(x[rows])}, hashes[rows], about(replace(source, pooling="mean")))
    with pytest.raises(ValueError, match=r"00001-of-00003.*: pooling: got 'mean' where .*00000-of-00003.* has 'last'"):
        open_embeddings(tmp_path, [(log.ids, log.messages)])
