"""An edit survives the disk bit by bit, and a file that was truncated or altered is noticed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from helpers.small_facts import bits, fit, made, weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mechunlearn.core.sites.localization import Localization
from mechunlearn.editing.edits.algebra import Delta
from mechunlearn.editing.edits.edits import Edit
from mechunlearn.editing.edits.files import FILE, FORMAT
from mechunlearn.editing.edits.history import History
from mechunlearn.editing.edits.recipes import Optimizer, Recipe, Stop
from mechunlearn.editing.objectives.likelihood import Inject
from mechunlearn.errors import DataError
from mechunlearn.models.arch import Slice
from mechunlearn.models.hooked import HookedModel


def header(folder: Path) -> dict[str, str]:
    """The texts in the header of an edit's file."""
    with safe_open(str(folder / FILE), framework="pt") as file:
        return dict(file.metadata())


def test_saving_and_loading_keeps_every_bit(llama: HookedModel, tmp_path: Path) -> None:
    fitted = fit(
        llama, "L0.head[1]", "L1.mlp", "embed", stop=Stop(every=1), optimizer=Optimizer(weight_decay=0.1)
    )
    fitted.save_pretrained(tmp_path / "new" / "folder")
    loaded = Edit.from_pretrained(tmp_path / "new" / "folder")
    assert [bits(d.values) for d in loaded.deltas] == [bits(d.values) for d in fitted.deltas]
    assert [d.slice for d in loaded.deltas] == [d.slice for d in fitted.deltas]
    for name in ("localization", "shapes", "made_on", "recipe", "step", "versions"):
        assert getattr(loaded, name) == getattr(fitted, name), name
    assert [dict(entry) for entry in loaded.history] == [dict(entry) for entry in fitted.history]
    assert loaded.localization.source == fitted.localization.source
    assert weights(loaded.apply(llama)) == weights(fitted.apply(llama))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_deltas_keep_their_precision_on_disk(dtype: torch.dtype, tmp_path: Path) -> None:
    part = Slice("w", 0, (1,))
    values = torch.tensor([[-0.0, 0.1, torch.nan, 1e-3]], dtype=dtype)
    Edit((Delta(part, values),), Localization(), {"w": (2, 4)}).save_pretrained(tmp_path)
    (delta,) = Edit.from_pretrained(tmp_path).deltas
    assert (delta.slice, delta.values.dtype, bits(delta.values)) == (part, dtype, bits(values))


def test_an_edit_that_cannot_be_written_leaves_no_file(llama: HookedModel, tmp_path: Path) -> None:
    odd: Any = {"step": 1.0, "odd": 1j}
    with pytest.raises(TypeError):
        made(llama, "L0.mlp", history=History([odd])).save_pretrained(tmp_path / "edit")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def saved(llama: HookedModel, tmp_path: Path) -> Iterator[Path]:
    history = History([{"step": 1.0}])
    made(llama, "L0.mlp.neuron[3]", recipe=Recipe(Inject()), history=history).save_pretrained(tmp_path)
    yield tmp_path


def test_a_folder_holds_one_file_and_either_is_read(llama: HookedModel, saved: Path) -> None:
    assert [file.name for file in saved.iterdir()] == [FILE]
    edits = [Edit.from_pretrained(source) for source in (saved, saved / FILE, str(saved / FILE))]
    assert len({str(weights(edit.apply(llama))) for edit in edits}) == 1


@pytest.mark.parametrize("share", [0.0, 0.2, 0.99])
def test_a_truncated_file_is_noticed(saved: Path, share: float) -> None:
    whole = (saved / FILE).read_bytes()
    (saved / FILE).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=f"{FILE} is no whole edit.*truncated or altered; copy or save the"):
        Edit.from_pretrained(saved)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.7, 0.9, 0.999])
def test_an_altered_byte_is_noticed(saved: Path, share: float) -> None:
    blob = bytearray((saved / FILE).read_bytes())
    blob[int(share * len(blob))] ^= 1
    (saved / FILE).write_bytes(blob)
    with pytest.raises(DataError, match=f"{FILE} is no whole edit.*truncated or altered; copy or save the"):
        Edit.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"record": '{"localization": ["L1.mlp"]}'}, "its hash is not that of its contents"),
        ({"made_on": "another"}, "its hash is not that of its contents"),
        ({"hash": ""}, "its hash is not that of its contents"),
        ({"format": "mechunlearn.edit/9"}, "has format 'mechunlearn.edit/9', not 'mechunlearn.edit/2'"),
        (None, "has format None, not 'mechunlearn.edit/2'"),
    ],
)
def test_an_altered_header_is_noticed(saved: Path, change: dict[str, str] | None, message: str) -> None:
    tensors = load_file(saved / FILE)
    save_file(tensors, saved / FILE, metadata=None if change is None else {**header(saved), **change})
    with pytest.raises(DataError, match=message):
        Edit.from_pretrained(saved)


@pytest.mark.parametrize("record", ["[]", "{}", "not JSON"])
def test_a_record_that_is_no_edit_is_refused(saved: Path, record: str) -> None:
    FORMAT.write(saved / FILE, {}, {"record": record})
    with pytest.raises(DataError, match=f"{FILE} is no whole edit: .*; save the edit again"):
        Edit.from_pretrained(saved)


def test_a_missing_file_is_named(saved: Path) -> None:
    (saved / FILE).unlink()
    with pytest.raises(DataError, match=rf"no edit in '.*{FILE}' \(.*\); copy or save the edit again"):
        Edit.from_pretrained(saved)


def test_an_edit_is_pushed_as_the_files_that_are_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, list[str]] = {}

    class Hub:
        def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
            sent[repo_id] = []

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
            sent[repo_id] = sorted(path.name for path in Path(folder_path).iterdir())
            return f"{repo_id}/commit/1"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert Edit((), Localization()).push_to_hub("user/edit") == "user/edit/commit/1"
    assert sent == {"user/edit": [FILE]}


# -- what is known of it ---------------------------------------------------------------------------------


def test_an_edit_remembers_the_versions_it_was_made_with(llama: HookedModel, tmp_path: Path) -> None:
    now = made(llama, "L0.mlp").versions
    # The local part of a version, as in 2.13.0+cpu, says who built it.
    assert {name: version.partition("+")[0] for name, version in now.items()} == {
        "mechunlearn": "0.1.0",
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
        "transformer-lens": metadata.version("transformer-lens"),
    }
    earlier = {name: "0.0.1" for name in now}
    made(llama, "L0.mlp", versions=earlier).save_pretrained(tmp_path)
    loaded = Edit.from_pretrained(tmp_path)
    assert loaded.versions == loaded.scale(2).versions == earlier
    assert json.loads(header(tmp_path)["record"])["versions"] == earlier


def test_the_record_says_what_a_reader_wants_to_know(llama: HookedModel, tmp_path: Path) -> None:
    fit(llama, "L1.mlp", objective=Inject(text=0.5), seed=5).save_pretrained(tmp_path)
    record = json.loads(header(tmp_path)["record"])
    assert record["localization"] == ["L1.mlp"] and record["made_on"] == llama.identity
    assert record["recipe"]["seed"] == 5 and record["recipe"]["objective"]["name"] == "Inject"
    assert record["recipe"]["objective"]["fields"]["text"] == 0.5


def test_an_edit_that_was_saved_can_still_be_restricted(hm: HookedModel, tmp_path: Path) -> None:
    edit = made(hm, "L0.mlp", "L1.attn", arch=hm.arch)
    edit.save_pretrained(tmp_path)
    loaded = Edit.from_pretrained(tmp_path)
    for sites in (["L0.mlp.neuron[3]", "L1.head[2]"], ["L0.mlp.out"], ["L1.mlp", "embed"], ["L1.attn"]):
        place = Localization(sites)
        cut, again = edit.restrict(place), loaded.restrict(place)
        assert cut.localization == again.localization and cut.shapes == again.shapes
        assert weights(cut.apply(hm)) == weights(again.apply(hm))


# -- the hub ---------------------------------------------------------------------------------------------

Asked = list[tuple[str, str | None, list[str]]]


@pytest.fixture
def asked(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What is asked of a hub that has one repository, user/edit."""
    wanted: Asked = []

    def snapshot_download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        wanted.append((repo_id, revision, allow_patterns))
        if repo_id != "user/edit":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no such repository")
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return wanted


def test_an_edit_is_fetched_by_name_and_revision(llama: HookedModel, saved: Path, asked: Asked) -> None:
    for options in ({}, {"revision": "v2"}):
        fetched = Edit.from_pretrained("user/edit", **options)
        assert weights(fetched.apply(llama)) == weights(Edit.from_pretrained(saved).apply(llama))
    assert asked == [("user/edit", None, [FILE]), ("user/edit", "v2", [FILE])]


def test_nothing_is_fetched_that_was_not_asked_for(
    saved: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    (saved / "inner").mkdir()
    for folder in (f"{saved.name}/inner", Path("user/edit"), "./user/edit", "/user/edit", "edit", "a/b/c"):
        with pytest.raises(DataError, match="no edit in"):
            Edit.from_pretrained(folder)
    assert asked == []


def test_a_name_that_cannot_be_fetched_is_an_error_with_the_remedy(saved: Path, asked: Asked) -> None:
    said = r"no folder 'user/typo' here, .*hub at revision 'v2' \(LocalEntryNotFoundError: no such repos"
    with pytest.raises(DataError, match=said):
        Edit.from_pretrained("user/typo", revision="v2")
    with pytest.raises(DataError, match=r"revision 'v2' was given with .*, which is read from the disk"):
        Edit.from_pretrained(saved, revision="v2")
