"""The course of a fit as a value: what it holds, and how it is tabulated and drawn."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechunlearn.editing.edits.history import History

STEPS: tuple[dict[str, float], ...] = (
    {"step": 1.0, "inject": 3.0, "retain": 0.5},
    {"step": 2.0, "inject": 2.0, "retain": 0.4, "success": 0.25, "retention": 0.75},
    {"step": 3.0, "inject": 1.0, "retain": 0.3},
    {"step": 4.0, "inject": 0.5, "retain": 0.2, "success": 1.0, "retention": 0.5},
)
HISTORY = History(STEPS, step=2, title="A <fit>")

records = st.lists(st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False), max_size=3), max_size=3)


@given(records, records)
def test_a_history_is_the_tuple_of_its_records(some: list[dict[str, float]], more: list[Any]) -> None:
    history = History(some, step=1, title="fit")
    assert history == tuple(some) and tuple(dict(record) for record in history) == tuple(some)
    assert (history == History(more)) == (some == more) == (history == tuple(more))
    assert hash(history) == hash(History(copy.deepcopy(some)))


def test_neither_what_goes_in_nor_what_comes_out_can_change_it() -> None:
    given = {"step": 1.0, "loss": 2.0}
    history = History([given])
    given["loss"] = 0.0
    with pytest.raises(TypeError):
        history[0]["loss"] = 0.0  # type: ignore[index]
    with pytest.raises(AttributeError):
        history.step = 3  # type: ignore[misc]
    assert history[0]["loss"] == 2.0


def test_slices_and_judged_steps_are_histories_with_the_same_kept_step() -> None:
    assert HISTORY[1:3] == STEPS[1:3] and HISTORY.judged == (STEPS[1], STEPS[3])
    assert HISTORY[1:3].step == HISTORY.judged.step == 2 and HISTORY.judged.title == "A <fit>"
    assert HISTORY.terms == ("inject", "retain")


def test_the_table_has_a_row_for_every_step_and_no_number_where_nothing_was_judged() -> None:
    frame = HISTORY.to_frame()
    assert list(frame.columns) == ["step", "inject", "retain", "success", "retention"]
    assert frame["step"].tolist() == [1, 2, 3, 4] and frame["inject"].tolist() == [3.0, 2.0, 1.0, 0.5]
    assert frame["success"].dropna().tolist() == [0.25, 1.0] and math.isnan(frame["success"][0])
    assert list(History(STEPS[:1]).to_frame().columns) == ["step", "inject", "retain"]
    assert len(History().to_frame()) == 0


def test_losses_are_drawn_above_shares_and_the_kept_step_is_marked_in_both() -> None:
    figure = HISTORY.plot()
    drawn = {trace.name: trace for trace in figure.data}
    assert {name: trace.yaxis for name, trace in drawn.items()} == {
        "inject": "y", "retain": "y", "success": "y2", "retention": "y2",
    }  # fmt: skip
    assert drawn["retain"].x == (1, 2, 3, 4) and drawn["retain"].y == (0.5, 0.4, 0.3, 0.2)
    assert drawn["success"].x == (2, 4) and drawn["success"].y == (0.25, 1.0)
    assert figure.layout.yaxis.domain[0] > figure.layout.yaxis2.domain[1]
    assert len({trace.line.color for trace in figure.data}) == 4
    assert {(line.x0, line.x1, line.yref) for line in figure.layout.shapes} == {
        (2, 2, "y domain"), (2, 2, "y2 domain"),
    }  # fmt: skip
    assert "kept: step 2" in [words.text for words in figure.layout.annotations]
    assert figure.layout.title.text == "A &lt;fit&gt;" and figure.layout.width is None


def test_without_judged_steps_there_is_one_panel_and_without_steps_it_says_so() -> None:
    assert {trace.yaxis for trace in History(STEPS[:1], step=1).plot().data} == {"y"}
    empty = History().plot()
    assert not empty.data and [words.text for words in empty.layout.annotations] == ["no steps"]


def test_jupyter_shows_the_figure_and_a_terminal_one_line() -> None:
    assert repr(HISTORY) == "History(4 steps, step 2 kept: success 0.25, retention 0.75)"
    assert HISTORY._repr_mimebundle_() == {**HISTORY.plot()._repr_mimebundle_(), "text/plain": repr(HISTORY)}
    assert repr(History(STEPS[:1], step=1)) == "History(1 steps, step 1 kept)"
    assert repr(History()) == "History(0 steps)"
