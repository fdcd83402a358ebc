"""Files of a model may come from strangers: sizes are checked before memory is taken, and errors are one line."""

import json
import os
import pickle
import time

import pytest

from irm_fast.embeddings.embedder import Embedder
from irm_fast.models import sizes
from irm_fast.models.backbone import load_backbone, model_config
from irm_fast.models.sizes import check_sizes

TOO_LARGE = {
    "num_labels": 10**9,
    "vocab_size": 10**9,
    "hidden_size": 10**7,
    "intermediate_size": 10**9,
    "num_hidden_layers": 10**6,
    "num_attention_heads": 10**9,
    "num_key_value_heads": 10**9,
    "head_dim": 10**9,
    "max_position_embeddings": 10**15,
}
WRONG = {
    "num_hidden_layers": [-1, "1000000", float("nan"), None, [10**9]],
    "hidden_size": [-32, 0, 1e300, "x"],
    "num_attention_heads": [0, -2],
    "hidden_act": ["os.system", 5],
    "rope_scaling": [{"type": "zz"}, "zz"],
    "model_type": ["nothing", None, 5],
    "quantization_config": [{"quant_method": "gptq", "bits": 4}],
}


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


FILES = {  # what stands in a file, and which files are taken away
    "a pickle that runs": ("pytorch_model.bin", pickle.dumps(Evil()), ["model.safetensors"]),
    "half a pickle": ("pytorch_model.bin", b"", ["model.safetensors"]),
    "zeros for weights": ("model.safetensors", b"\0" * 1000, []),
    "weights that lie": ("model.safetensors", (2**60).to_bytes(8, "little") + b"{}", []),
    "an index that leads away": (
        "model.safetensors.index.json",
        b'{"metadata": {}, "weight_map": {"score.weight": "../../etc/passwd"}}',
        ["model.safetensors"],
    ),
    "an index without entries": ("model.safetensors.index.json", b'{"weight_map": {}}', ["model.safetensors"]),
    "a list for a configuration": ("config.json", b"[]", []),
    "a deep configuration": ("config.json", b"[" * 10**5, []),
    "half a configuration": ("config.json", b'{"model_type": "lla', []),
    "a configuration of other bytes": ("config.json", b"\xff\xfe", []),
    "no tokenizer": ("tokenizer.json", b"", []),
    "a tokenizer of another form": ("tokenizer.json", b'{"model": 3, "added_tokens": 5}', []),
    "a list for the tokenizer": ("tokenizer_config.json", b"[1]", []),
    "half an adapter": ("adapter_config.json", b'{"a":', []),
    "a list for an adapter": ("adapter_config.json", b"[1]", []),
}


@pytest.fixture
def folder(tmp_path, save_tokenizer, save_llama):
    save_llama(tmp_path, save_tokenizer(tmp_path))
    return tmp_path


def edit(folder, **change):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def refusals(folder):
    for load in (load_backbone, lambda path: Embedder(str(path))):
        with pytest.raises(ValueError) as refused:
            load(folder)
        assert "\n" not in str(refused.value)
        yield str(refused.value)


@pytest.mark.parametrize("field", TOO_LARGE)
def test_a_size_that_no_model_has_is_named_before_anything_is_made(folder, field):
    edit(folder, **{field: TOO_LARGE[field]})
    started = time.process_time()
    for text in refusals(folder):
        assert text.startswith(f"{folder}/config.json: {field}: got {TOO_LARGE[field]}; expected ")
    assert time.process_time() - started < 10


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_other_wrong_entries_are_refused_in_a_line(folder, field, value):
    edit(folder, **{field: value})
    assert all("config.json" in text or str(folder) in text or "LlamaConfig" in text for text in refusals(folder))


def test_sizes_within_parts_and_of_experts_together_are_checked():
    check_sizes({"num_hidden_layers": 61, "n_routed_experts": 384, "vocab_size": 163840, "sliding_window": -1}, "c")
    check_sizes({"model_max_length": 1e30}, "c")  # which stands for no limit
    with pytest.raises(ValueError, match=r"c: text_config.layers\[1\].num_layers: got 5000; expected 0 to 1,024"):
        check_sizes({"text_config": {"layers": [{}, {"num_layers": 5000}]}}, "c")
    with pytest.raises(ValueError, match=r"c: got 1,000 layers of 10,000 experts"):
        check_sizes({"num_hidden_layers": 1000, "num_local_experts": 10_000}, "c")


def test_more_weights_than_the_files_hold_or_the_machine_are_not_made(folder, monkeypatch):
    edit(folder, vocab_size=10**7)
    assert all("its files hold 0.000" in text for text in refusals(folder))
    monkeypatch.setattr(sizes, "ALWAYS_MADE", 2**60)
    monkeypatch.setattr(sizes, "machine_memory", lambda: 10**9)
    assert all("1.3 GB; this machine has 1.0 GB of memory; expected" in text for text in refusals(folder))
    assert sizes.machine_memory() == 10**9


def test_the_memory_of_this_machine_is_known():
    assert 2**28 < sizes.machine_memory() < 2**50


@pytest.mark.parametrize("kind", FILES)
def test_damaged_and_hostile_files_are_refused_in_a_line(folder, monkeypatch, kind):
    monkeypatch.chdir(folder)
    name, content, gone = FILES[kind]
    for other in gone:
        (folder / other).unlink()
    (folder / name).write_bytes(content)
    for text in refusals(folder):
        assert str(folder) in text and "weights_only" not in text
    assert not (folder / "pwned").exists()


def test_code_that_comes_with_a_model_is_not_run(folder, monkeypatch):
    (folder / "code.py").write_text("open('pwned', 'w')\n")
    monkeypatch.chdir(folder)
    edit(folder, auto_map={"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"})
    model_config(str(folder))
    load_backbone(folder)
    edit(folder, model_type="strange")
    assert all("of an unknown kind" in text for text in refusals(folder))
    assert not (folder / "pwned").exists()
