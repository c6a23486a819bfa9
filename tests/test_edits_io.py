"""An edit survives the disk bit by bit, and a file that was truncated or altered is noticed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small import bits, fit, made, weights

from mechunlearn.editing.edits import Delta, Edit
from mechunlearn.editing.recipes import Recipe, Stop
from mechunlearn.errors import DataError
from mechunlearn.model import HookedModel
from mechunlearn.model.arch import Slice
from mechunlearn.objectives import Inject
from mechunlearn.sites import Localization


def test_saving_and_loading_keeps_every_bit(llama: HookedModel, tmp_path: Path) -> None:
    fitted = fit(llama, "L0.head[1]", "L1.mlp", "embed", stop=Stop(every=1), weight_decay=0.1)
    fitted.save_pretrained(tmp_path / "new" / "folder")
    loaded = Edit.from_pretrained(tmp_path / "new" / "folder")
    assert [bits(d.values) for d in loaded.deltas] == [bits(d.values) for d in fitted.deltas]
    assert [d.slice for d in loaded.deltas] == [d.slice for d in fitted.deltas]
    for name in ("localization", "shapes", "made_on", "recipe", "history", "step"):
        assert getattr(loaded, name) == getattr(fitted, name), name
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
        made(llama, "L0.mlp", history=(odd,)).save_pretrained(tmp_path / "edit")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def saved(llama: HookedModel, tmp_path: Path) -> Iterator[Path]:
    made(llama, "L0.mlp.neuron[3]", recipe=Recipe(Inject()), history=({"step": 1.0},)).save_pretrained(
        tmp_path
    )
    yield tmp_path


@pytest.mark.parametrize("name", ["delta.safetensors", "edit.json"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.99])
def test_a_truncated_file_is_noticed(saved: Path, name: str, share: float) -> None:
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=f"{name} was truncated or altered.*copy or save the edit again"):
        Edit.from_pretrained(saved)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_a_byte_altered_in_the_deltas_is_noticed(saved: Path, share: float) -> None:
    file = saved / "delta.safetensors"
    blob = bytearray(file.read_bytes())
    blob[int(share * len(blob))] ^= 1
    file.write_bytes(blob)
    with pytest.raises(DataError, match=r"delta.safetensors was truncated or altered, its hash is not"):
        Edit.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"localization": ["L1.mlp"]}, r"edit.json was truncated or altered, its hash is not the one"),
        ({"made_on": "another"}, r"edit.json was truncated or altered, its hash is not the one"),
        ({"hashes": None}, r"edit.json was altered \(it lacks its hashes\); copy or save"),
        ({"hashes": {}}, "delta.safetensors was truncated or altered"),
        ({"format": "mechunlearn.edit/9"}, "has format 'mechunlearn.edit/9', not 'mechunlearn.edit/1'"),
    ],
)
def test_an_altered_record_is_noticed(saved: Path, change: dict[str, Any], message: str) -> None:
    record = json.loads((saved / "edit.json").read_text())
    (saved / "edit.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(DataError, match=message):
        Edit.from_pretrained(saved)


def test_a_record_that_is_no_edit_is_refused(saved: Path) -> None:
    (saved / "edit.json").write_text("[]")
    with pytest.raises(DataError, match=r"has format 'list', not 'mechunlearn.edit/1': it is not an edit"):
        Edit.from_pretrained(saved)


@pytest.mark.parametrize("name", ["delta.safetensors", "edit.json"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(DataError, match=rf"no edit in '.*' \(.*{name}.*\); copy or save the edit again"):
        Edit.from_pretrained(saved)


def test_an_edit_is_pushed_as_the_files_that_are_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    sent: dict[str, list[str]] = {}

    class Hub:
        def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
            sent[repo_id] = []

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
            sent[repo_id] = sorted(path.name for path in Path(folder_path).iterdir())
            return f"{repo_id}/commit/1"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert Edit((), Localization()).push_to_hub("user/edit") == "user/edit/commit/1"
    assert sent == {"user/edit": ["delta.safetensors", "edit.json"]}
