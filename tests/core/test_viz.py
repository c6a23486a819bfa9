"""Figures keep labels apart, colours centred, and missing values grey."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mechunlearn.core.viz.curves import bar_plot, line_plot
from mechunlearn.core.viz.grids import matrix_panels, matrix_plot
from mechunlearn.core.viz.stacks import stack

ROWS = ["L0", "L1", "L2"]
TOKENS = ["<bos>", " the", " sport", " the"]

grids = arrays(np.float64, (3, 4), elements=st.floats(-5, 5) | st.just(np.nan))


class TestHeatmap:
    def test_equal_tokens_stand_on_integer_ticks_of_their_own(self) -> None:
        axis = matrix_plot(np.zeros((3, 4)), rows=ROWS, cols=TOKENS).layout.xaxis
        assert axis.tickvals == (0, 1, 2, 3)
        assert axis.ticktext == ("&lt;bos&gt;", " the", " sport", " the")

    def test_the_first_row_is_at_the_bottom(self) -> None:
        axis = matrix_plot(np.zeros((3, 4)), rows=ROWS, cols=TOKENS).layout.yaxis
        assert axis.ticktext == ("L0", "L1", "L2")
        assert axis.range == (-0.5, 2.5)

    @given(grids)
    @settings(max_examples=25, deadline=None)
    def test_white_is_zero(self, values: Any) -> None:
        colours = matrix_plot(values, rows=ROWS, cols=TOKENS).layout.coloraxis
        reach = np.nanmax(np.abs(values), initial=0) or 1
        shades = [shade for _, shade in colours.colorscale]
        assert colours.cmax == reach
        assert colours.cmin == (-reach if (values < 0).any() else 0)
        assert shades[len(shades) // 2 if colours.cmin else 0] == "#ffffff"

    def test_a_missing_value_shows_the_grey_ground(self) -> None:
        figure = matrix_plot(np.full((3, 4), np.nan), rows=ROWS, cols=TOKENS)
        assert figure.layout.plot_bgcolor == "#d4d4d4"
        assert figure.data[0].hoverongaps is False

    def test_hover_gives_the_place_and_the_value(self) -> None:
        trace = matrix_plot(np.ones((3, 4)), rows=ROWS, cols=TOKENS).data[0]
        assert trace.text[1][0] == "L1, &lt;bos&gt;"
        assert trace.hovertemplate.startswith("%{text}<br>%{z")
        named = matrix_plot(np.ones((1, 1)), rows=["L0"], cols=["mlp"], hover=[["L0.mlp"]])
        assert list(named.data[0].text[0]) == ["L0.mlp"]

    def test_of_very_many_labels_some_are_written(self) -> None:
        axis = matrix_plot(np.zeros((1, 200)), rows=["L0"], cols=[str(i) for i in range(200)]).layout.xaxis
        assert len(axis.tickvals) == 40
        assert all(str(tick) == text for tick, text in zip(axis.tickvals, axis.ticktext, strict=True))

    def test_the_unit_stands_beside_the_colours(self) -> None:
        figure = matrix_plot(np.ones((3, 4)), rows=ROWS, cols=TOKENS, title="Trace", unit="probability")
        assert figure.layout.coloraxis.colorbar.title.text == "probability"
        assert figure.layout.title.text == "Trace"

    def test_labels_are_told_apart_from_the_array(self) -> None:
        with pytest.raises(ValueError, match=r"2 row labels and 4 column labels do not fit .* of 3 by 4"):
            matrix_plot(np.zeros((3, 4)), rows=ROWS[:2], cols=TOKENS)


class TestPanels:
    def test_all_share_one_colour_scale(self) -> None:
        figure = matrix_panels({"a": np.eye(3, 4), "b": -9 * np.eye(3, 4)}, rows=ROWS, cols=TOKENS)
        assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}
        assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-9, 9)
        assert [words.text for words in figure.layout.annotations] == ["a", "b"]

    def test_four_stand_in_a_row(self) -> None:
        figure = matrix_panels({str(i): np.eye(3, 4) for i in range(5)}, rows=ROWS, cols=TOKENS)
        heights = [figure.layout[f"yaxis{i or ''}"].domain for i in (0, 2, 3, 4, 5)]
        assert len(set(heights[:4])) == 1
        assert heights[4][1] < heights[0][0]

    def test_nothing_to_draw_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="panels draws one grid or more"):
            matrix_panels({}, rows=ROWS, cols=TOKENS)


class TestCurves:
    def test_a_curve_has_markers_and_its_band(self) -> None:
        figure = line_plot({"probe": [0.3, 0.9]}, x=["L0", "L1"], bands={"probe": ([0.2, 0.8], [0.4, 1.0])})
        band, curve = figure.data
        assert curve.mode == "lines+markers"
        assert list(curve.y) == [0.3, 0.9]
        assert list(band.y) == [0.4, 1.0, 0.8, 0.2]
        assert band.hoverinfo == "skip"

    def test_a_band_ends_where_the_curve_has_a_gap(self) -> None:
        lower, upper = [0.1, np.nan, 0.2, 0.3], [0.2, np.nan, 0.4, 0.5]
        figure = line_plot({"a": [0.1, np.nan, 0.3, 0.4]}, x=TOKENS, bands={"a": (lower, upper)})
        bands = [trace for trace in figure.data if trace.fill == "toself"]
        assert [list(band.x) for band in bands] == [[0, 0], [2, 3, 3, 2]]

    def test_points_may_lie_between_integers(self) -> None:
        figure = line_plot({"a": [1.0, 2.0]}, x=["0+1", "1+2"], at=[0.5, 1.5])
        assert figure.layout.xaxis.tickvals == (0.5, 1.5)
        assert figure.layout.xaxis.ticktext == ("0+1", "1+2")

    @pytest.mark.parametrize("draw", [line_plot, bar_plot])
    def test_chance_is_a_dashed_line(self, draw: Any) -> None:
        figure = draw({"a": [0.5, 0.7]}, x=["L0", "L1"], chance=0.25)
        assert (figure.layout.shapes[0].y0, figure.layout.shapes[0].line.dash) == (0.25, "dash")
        assert figure.layout.annotations[0].text == "chance"

    def test_bars_carry_their_intervals(self) -> None:
        figure = bar_plot({"edit": [0.5], "gold": [0.4]}, x=["relearned"], bands={"edit": ([0.25], [1.0])})
        error = figure.data[0].error_y
        assert (error.array[0], error.arrayminus[0]) == (0.5, 0.25)
        assert [bar.name for bar in figure.data] == ["edit", "gold"]

    def test_one_curve_needs_no_legend(self) -> None:
        assert not line_plot({"a": [1.0]}, x=["L0"]).data[0].showlegend
        assert all(trace.showlegend for trace in line_plot({"a": [1.0], "b": [2.0]}, x=["L0"]).data)


class TestStack:
    def test_figures_share_their_horizontal_axis_and_keep_their_own_scales(self) -> None:
        top = matrix_plot(np.ones((3, 4)), rows=ROWS, cols=list("0123"), title="where")
        below = line_plot({"a": [0.1, 0.2, 0.3]}, x=["0+1", "1+2", "2+3"], at=[0.5, 1.5, 2.5], chance=0.2)
        figure = stack([top, below], title="depth")
        assert figure.layout.xaxis.range == figure.layout.xaxis2.range == (-0.5, 3.5)
        assert figure.layout.xaxis2.ticktext == ("0+1", "1+2", "2+3")
        assert figure.layout.height == top.layout.height + below.layout.height
        assert {words.text for words in figure.layout.annotations} >= {"where", "chance"}
        assert figure.layout.title.text == "depth"

    def test_the_figures_are_left_as_they_were(self) -> None:
        top = matrix_plot(np.ones((3, 4)), rows=ROWS, cols=TOKENS)
        before = top.to_json()
        stack([top, top])
        assert top.to_json() == before


class TestManners:
    def test_a_figure_is_returned_and_no_template_is_touched(self) -> None:
        before = plotly.io.templates.default
        assert isinstance(line_plot({"a": [1.0]}, x=["L0"]), go.Figure)
        assert plotly.io.templates.default == before

    def test_figures_stay_small(self) -> None:
        assert len(matrix_plot(np.zeros((3, 4)), rows=ROWS, cols=TOKENS).to_json()) < 4000

    def test_markup_in_labels_is_written_not_obeyed(self) -> None:
        figure = bar_plot({"<b>": [1.0]}, x=["<s>\n"], title="a < b", unit="<unk>")
        assert figure.data[0].name == "&lt;b&gt;"
        assert figure.layout.xaxis.ticktext == ("&lt;s&gt;↵",)
        assert figure.layout.title.text == "a &lt; b"
        assert figure.layout.yaxis.title.text == "&lt;unk&gt;"
