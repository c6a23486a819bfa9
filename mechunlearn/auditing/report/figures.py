"""The pictures of a report.

1. ``overview``: the old answer of the forget facts and what goes with them, one line for every way of
   asking, one dot with its interval for every model.
2. ``maintained``: the same for what was to survive.
3. ``probe``: what a linear reader makes of the last subject token, layer by layer, old and new answer.
4. One for every attack: the old answer in the half it did not see, and what was maintained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mechunlearn.auditing.report.estimates import CONTROLS, EDITED, GOLD, UNTOUCHED, Estimate
from mechunlearn.core.viz.curves import line_plot
from mechunlearn.core.viz.style import CURVES, GRID, escaped, finish

if TYPE_CHECKING:
    import plotly.graph_objects as go

MODELS = (EDITED, UNTOUCHED, GOLD, CONTROLS)
SYMBOLS = dict(zip(MODELS, ("circle", "diamond", "square", "x"), strict=True))
_LINE = 20


def figures(table: Sequence[Estimate], attacks: Sequence[str]) -> dict[str, go.Figure]:
    """All pictures for which there is data.

    Args:
        table: all estimates.
        attacks: the names of the attacks.
    """
    told = ("forget", "entailed")
    kept = ("maintained", "same subject", "neighbours")
    panels: dict[str, tuple[str, Callable[[Estimate], bool]]] = {
        "overview": ("The old answer of the facts to forget", lambda e: e.section in told),
        "maintained": ("What was to survive", lambda e: e.section.startswith(kept)),
        **{
            name: (f"After {name}", lambda e, name=name: e.section in (name, f"{name}, maintained"))  # type: ignore[misc]
            for name in attacks
        },
    }
    drawn = {}
    for name, (title, wanted) in panels.items():
        chosen = [e for e in table if e.metric == "answer" and e.model in MODELS and wanted(e)]
        if chosen:
            drawn[name] = dots(chosen, title=title)
    read = [e for e in table if e.section == "probe" and e.model in MODELS]
    if read:
        drawn["probe"] = probes(read)
    return drawn


def dots(chosen: Sequence[Estimate], *, title: str) -> go.Figure:
    """Draw one line for every way of asking, one dot with its interval for every model.

    Args:
        chosen: estimates of one metric.
        title: written above.
    """
    import plotly.graph_objects as go

    labels = list(dict.fromkeys(_label(e) for e in chosen))
    there = [model for model in MODELS if any(e.model == model for e in chosen)]
    figure = go.Figure()
    for number, model in enumerate(there):
        mine = [e for e in chosen if e.model == model]
        shift = 0.22 * ((len(there) - 1) / 2 - number)
        figure.add_scatter(
            x=[e.value for e in mine], y=[shift - labels.index(_label(e)) for e in mine], mode="markers",
            name=model, marker={"color": CURVES[number], "symbol": SYMBOLS[model], "size": 8},
            error_x={"array": [e.high - e.value for e in mine], "arrayminus": [e.value - e.low for e in mine],
                     "color": CURVES[number], "thickness": 1.4, "width": 0},
            text=[escaped(f"{model}, {_label(e)}: {e.interval}") for e in mine],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(range=[-0.03, 1.03], gridcolor=GRID, zeroline=False, title="share of facts")
    figure.update_yaxes(
        tickvals=[-place for place in range(len(labels))], ticktext=[escaped(label) for label in labels],
        range=[0.6 - len(labels), 0.6], gridcolor=GRID, zeroline=False, automargin=True,
    )  # fmt: skip
    figure.update_layout(legend_traceorder="normal")
    return finish(figure, title, height=150 + (_LINE + 6 * len(there)) * len(labels))


def probes(read: Sequence[Estimate]) -> go.Figure:
    """Draw what probes read at the last subject token: the old answer, and the edited model's new one.

    Args:
        read: estimates of the section ``"probe"``.
    """
    sites = list(dict.fromkeys(e.phrasing for e in read))
    relations = list(dict.fromkeys(e.relation for e in read))
    curves, bands = {}, {}
    for model, metric in (*((model, "answer") for model in MODELS), (EDITED, "new")):
        for relation in relations:
            mine = [e for e in read if (e.model, e.metric, e.relation) == (model, metric, relation)]
            if mine:
                what = "new answer" if metric == "new" else "old answer"
                name = f"{model}, {what}" + (f" ({relation})" if len(relations) > 1 else "")
                curves[name] = [e.value for e in mine]
                bands[name] = ([e.low for e in mine], [e.high for e in mine])
    x = ["embed" if site == "L0.resid_pre" else site.replace("resid_", "") for site in sites]
    title = "What a probe reads at the last subject token (fitted on facts that were kept)"
    return line_plot(curves, x=x, title=title, unit="share of forget facts", bands=bands)


def _label(found: Estimate) -> str:
    relation = f" ({found.relation})" if found.relation else ""
    return f"{found.section}{relation}: {found.phrasing}"
