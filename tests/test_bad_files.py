"""Files that are truncated, altered or something else: an error that names the file and leaves it alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from helpers.refusals import refused, stop_button
from helpers.small_facts import FACTS, RETAIN, fit, made, weights
from helpers.tiny_models import hf_model, memory_tokenizer

import mechunlearn as mu
from mechunlearn.errors import DataError, FactError, MechUnlearnError, ModelError

pytestmark = pytest.mark.usefixtures("unchecked")

READERS: dict[str, Callable[[Path], object]] = {
    "edit": mu.Edit.from_pretrained,
    "localization": lambda folder: mu.Localization.load(folder / "sites.json"),
    "facts": lambda folder: mu.Facts.from_jsonl(folder / "facts.jsonl"),
    "model": mu.HookedModel.from_pretrained,
}
WRITTEN = {
    "edit": ("edit.safetensors",),
    "localization": ("sites.json",),
    "facts": ("facts.jsonl",),
    "model": ("config.json", "model.safetensors", "tokenizer.json"),
}
FILES = [(kind, name) for kind, names in WRITTEN.items() for name in names]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one folder of each kind."""
    root = tmp_path_factory.mktemp("library")
    for kind in WRITTEN:
        (root / kind).mkdir()
    hm = mu.HookedModel.from_hf(hf_model("llama"), memory_tokenizer())
    fit(hm).save_pretrained(root / "edit")
    mu.Localization(["L0.mlp", "L1.attn"]).save(root / "localization" / "sites.json")
    (FACTS + mu.Facts([RETAIN[0].replace(prompt="So Cy plays", others=RETAIN)])).to_jsonl(
        root / "facts" / "facts.jsonl"
    )
    hm.save_pretrained(root / "model")
    for kind, reader in READERS.items():
        reader(root / kind)
    return root


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_truncated_file_is_refused_and_left_as_it_is(
    library: Path, tmp_path: Path, kind: str, name: str
) -> None:
    folder = tmp_path / kind
    shutil.copytree(library / kind, folder)
    whole = (folder / name).read_bytes()
    for share in (0.0, 0.3, 0.97):
        (folder / name).write_bytes(whole[: int(share * len(whole))])
        with refused(MechUnlearnError, str(folder), folder=folder):
            READERS[kind](folder)


REMEDIES = {
    "edit": (DataError, "truncated or altered", "copy or save the edit again"),
    "localization": (DataError, "is not a whole localization", "write it again with Localization.save"),
    "facts": (DataError, "cut short or altered", "write it again"),
    "model": (ModelError, "altered", "save or download"),
}


@pytest.mark.parametrize("kind", REMEDIES)
def test_a_file_cut_in_the_middle_is_named_with_the_remedy(library: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    shutil.copytree(library / kind, folder)
    file = folder / WRITTEN[kind][0]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    error, *said = REMEDIES[kind]
    with refused(error, str(folder), *said, folder=folder):
        READERS[kind](folder)


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_file_of_something_else_is_refused(library: Path, tmp_path: Path, kind: str, name: str) -> None:
    folder = tmp_path / kind
    shutil.copytree(library / kind, folder)
    for content in (b"", b"[]", b"null", b"\xff\xfe\x00\x81", b"\x89PNG\r\n", b"not what it was\n"):
        (folder / name).write_bytes(content)
        with refused(MechUnlearnError, str(folder), folder=folder):
            READERS[kind](folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 1}, "1.input_layernorm.weight', but its config.json says 1 layers"),
        ({"num_hidden_layers": 3}, "do not fill the model: 9 parameters are missing"),
        ({"num_hidden_layers": "two"}, "expected int, got str (value: 'two')"),
        ({"intermediate_size": 50}, "6 parameters are missing or have another shape, such as"),
        ({"num_attention_heads": 5, "head_dim": None}, "not a multiple of the number of attention heads"),
        ({"model_type": "opt"}, "not 'OPTForCausalLM'"),
    ],
    ids=str,
)
def test_an_altered_configuration_never_gives_another_model(
    library: Path, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(library / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with refused(ModelError, said, folder=folder):
        mu.HookedModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"others": [3]}, ("record 4: 3 stands where facts are nested", '{"prompt": ...')),
        ({"neighbours": ["Al"]}, ("record 4: ['Al'] stands where facts are nested", '{"same sport": [...]}')),
        ({"neighbours": {"same sport": "Al"}}, ("record 4: 'Al' stands where facts are nested",)),
        ({"entailed": 0.5}, ("record 4: 0.5 stands where facts are nested",)),
        ({"split": "forgotten"}, ("record 4: split must be one of 'forget', 'retain' or 'test'",)),
    ],
)
def test_an_altered_fact_is_refused_with_its_number(
    library: Path, tmp_path: Path, change: dict[str, object], said: tuple[str, ...]
) -> None:
    lines = (library / "facts" / "facts.jsonl").read_text().splitlines()
    lines[4] = json.dumps({**json.loads(lines[4]), **change})
    (tmp_path / "facts.jsonl").write_text("\n".join(lines))
    with refused(FactError, *said, folder=tmp_path):
        mu.Facts.from_jsonl(tmp_path / "facts.jsonl")


@pytest.mark.parametrize("text", ["None", "sentence", [1], [None]])
def test_an_altered_header_of_facts_is_refused(library: Path, tmp_path: Path, text: object) -> None:
    header, *lines = (library / "facts" / "facts.jsonl").read_text().splitlines()
    changed = json.dumps({**json.loads(header), "text": text})
    (tmp_path / "facts.jsonl").write_text("\n".join([changed, *lines]))
    with refused(DataError, "facts.jsonl", str(text), "expected a list of strings", folder=tmp_path):
        mu.Facts.from_jsonl(tmp_path / "facts.jsonl")


def test_a_folder_that_is_not_a_model_is_refused(library: Path, tmp_path: Path) -> None:
    said = "is not a model: it is a folder without config.json", "Give a folder written by save_pretrained"
    for folder in (tmp_path, library / "edit", library / "facts"):
        with refused(ModelError, str(folder), *said, folder=folder):
            mu.HookedModel.from_pretrained(folder)
    for path in (tmp_path / "typo", library / "model" / "model.safetensors"):
        with refused(ModelError, f"{str(path)!r} is not a model: it is not a folder", said[1]):
            mu.HookedModel.from_pretrained(path)
    name: Any = "gpt2"
    with refused(ModelError, "not 'gpt2'", "HookedModel.from_pretrained"):
        mu.HookedModel.from_hf(name)


def test_files_of_one_kind_are_not_read_as_another(library: Path, tmp_path: Path) -> None:
    firsts = {kind: library / kind / names[0] for kind, names in WRITTEN.items()}
    with refused(DataError, "no edit in", "edit.safetensors", "copy or save the edit again"):
        mu.Edit.from_pretrained(library / "model")
    for kind in ("edit", "facts", "model"):
        with refused(DataError, str(firsts[kind]), "is not a whole localization"):
            mu.Localization.load(firsts[kind])
    for kind, problem in (("edit", "is not UTF-8"), ("localization", "line 1 is"), ("model", "line 1 is")):
        with refused(DataError, str(firsts[kind]), problem):
            mu.Facts.from_jsonl(firsts[kind])
    with refused(DataError, "is no whole edit", "truncated or altered"):
        mu.Edit.from_pretrained(firsts["localization"])
    with refused(DataError, "'pt', not 'mechunlearn.edit/2'"):
        mu.Edit.from_pretrained(library / "model" / "model.safetensors")


WRITES: tuple[tuple[Any, str], ...] = ((safetensors.torch, "save_file"), (os, "fsync"), (Path, "replace"))


@pytest.mark.parametrize("killed", [False, True], ids=["Ctrl-C", "killed"])
@pytest.mark.parametrize(("place", "name"), WRITES, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("before", [True, False], ids=["over another", "first"])
def test_an_interrupt_while_saving_leaves_one_whole_edit(
    llama: mu.HookedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    killed: bool,
    before: bool,
) -> None:
    old, new = (made(llama, site, seed=seed) for seed, site in enumerate(("L0.mlp", "L1.mlp")))
    if before:
        old.save_pretrained(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(place, name, stop_button)
        if killed:  # nothing is tidied up
            patched.setattr(Path, "unlink", lambda *_, **__: None)
        new.save_pretrained(tmp_path)
    if before:
        assert weights(mu.Edit.from_pretrained(tmp_path).apply(llama)) == weights(old.apply(llama))
    else:
        with refused(DataError, "no edit in", folder=tmp_path):
            mu.Edit.from_pretrained(tmp_path)
    new.save_pretrained(tmp_path)
    assert weights(mu.Edit.from_pretrained(tmp_path).apply(llama)) == weights(new.apply(llama))
    assert [file.name for file in tmp_path.iterdir()] == ["edit.safetensors"]
