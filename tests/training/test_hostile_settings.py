"""Files of settings that stand for more than they hold, or for what is no setting, are refused quickly."""

import time
from pathlib import Path

import pytest

from irm_fast.training.config import load_config
from irm_fast.training.setting_values import read_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]" for i in range(9)
)
MAPS = "a0: &a0 {x: 1}\n" + "\n".join(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}" for i in range(1, 60))
HOSTILE = {
    "lists that double": (LAUGHS, "stands for more than 100,000 values"),
    "mappings that double": (MAPS, "stands for more than 100,000 values"),
    "a circle": ("a: &a [*a]", "stands for more than 100,000 values"),
    "depth": ("a: " + "[" * 20_000, "not readable as YAML"),
    "length": ("a: " + "x" * 2**21, "longer than 1,048,576 bytes"),
    "an object of Python": ("model: !!python/object/apply:os.system ['touch pwned']", "not readable as YAML"),
    "bytes": ("model: \udcff", "not readable as YAML"),
    "a list": ("[1]", "got a list"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_it_is_refused_quickly_and_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    text, words = HOSTILE[kind]
    (tmp_path / "c.yaml").write_bytes(text.encode(errors="surrogateescape"))
    started = time.process_time()
    with pytest.raises(ValueError, match=words) as refused:
        load_config(tmp_path / "c.yaml")
    assert time.process_time() - started < 20 and len(str(refused.value)) < 1000
    assert not (tmp_path / "pwned").exists()


def test_honest_repeats_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("map: &m {prompt: input}\nmodel: x\nother: [*m, *m]\n")
    assert read_yaml(tmp_path / "c.yaml")["other"] == [{"prompt": "input"}] * 2
