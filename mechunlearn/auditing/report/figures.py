"""The figures of a report.

1. ``overview``: share of old answers to the forget facts and the facts that follow from them, one line for
   every section and phrasing, one dot with its interval for every model.
2. ``maintained``: the same for the facts that were to survive.
3. ``probe``: answers that linear probes predict at the last subject token, layer by layer, old and new.
4. One for every attack: the old answers in the half that it did not see, and the maintained facts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mechunlearn.auditing.report.estimates import CONTROLS, GOLD, Estimate
from mechunlearn.core.estimates import EDITED, UNTOUCHED
from mechunlearn.core.facts.kinds import in_words
from mechunlearn.core.viz.curves import line_plot
from mechunlearn.core.viz.style import CURVES, GRID, escaped, finish

if TYPE_CHECKING:
    import plotly.graph_objects as go

MODELS = (EDITED, UNTOUCHED, GOLD, CONTROLS)
SYMBOLS = dict(zip(MODELS, ("circle", "diamond", "square", "x"), strict=True))
_LINE = 20


def figures(table: Sequence[Estimate], attacks: Sequence[str]) -> dict[str, go.Figure]:
    """Every figure for which there are estimates, by name."""
    survivors = ("maintained", "same subject", "neighbours")
    panels: dict[str, tuple[str, Callable[[Estimate], bool]]] = {
        "overview": ("The old answer of the facts to forget", lambda e: e.section in ("forget", "entailed")),
        "maintained": ("What was to survive", lambda e: e.section.startswith(survivors)),
        **{
            # The default value binds the name now; a plain closure would see only the last attack's.
            name: (f"After {name}", lambda e, name=name: e.section in (name, f"{name}, maintained"))  # type: ignore[misc]
            for name in attacks
        },
    }
    drawn = {}
    for name, (title, belongs) in panels.items():
        selected = [e for e in table if e.metric == "answer" and e.model in MODELS and belongs(e)]
        if selected:
            drawn[name] = dots(selected, title=title)
    read = [e for e in table if e.section == "probe" and e.model in MODELS]
    if read:
        drawn["probe"] = probes(read)
    return drawn


def dots(estimates: Sequence[Estimate], *, title: str) -> go.Figure:
    """Draw one line for every section and phrasing, one dot with its interval for every model."""
    import plotly.graph_objects as go

    labels = list(dict.fromkeys(_label(e) for e in estimates))
    models = [model for model in MODELS if any(e.model == model for e in estimates)]
    figure = go.Figure()
    for number, model in enumerate(models):
        points = [e for e in estimates if e.model == model]
        # Dots of different models on one line must not cover each other.
        shift = 0.22 * ((len(models) - 1) / 2 - number)
        figure.add_scatter(
            x=[e.value for e in points], y=[shift - labels.index(_label(e)) for e in points], mode="markers",
            name=model, marker={"color": CURVES[number], "symbol": SYMBOLS[model], "size": 8},
            error_x={"array": [e.high - e.value for e in points],
                     "arrayminus": [e.value - e.low for e in points],
                     "color": CURVES[number], "thickness": 1.4, "width": 0},
            text=[escaped(f"{model}, {_label(e)}: {e.interval}") for e in points],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(range=[-0.03, 1.03], gridcolor=GRID, zeroline=False, title="share of facts")
    figure.update_yaxes(
        tickvals=[-line for line in range(len(labels))], ticktext=[escaped(label) for label in labels],
        range=[0.6 - len(labels), 0.6], gridcolor=GRID, zeroline=False, automargin=True,
    )  # fmt: skip
    figure.update_layout(legend_traceorder="normal")
    return finish(figure, title, height=150 + (_LINE + 6 * len(models)) * len(labels))


def probes(estimates: Sequence[Estimate]) -> go.Figure:
    """Draw the accuracy of probes at the last subject token: old answer, and the edited model's new one."""
    sites = list(dict.fromkeys(e.phrasing for e in estimates))
    relations = list(dict.fromkeys(e.relation for e in estimates))
    curves, bands = {}, {}
    for model, metric in (*((model, "answer") for model in MODELS), (EDITED, "new")):
        for relation in relations:
            points = [e for e in estimates if (e.model, e.metric, e.relation) == (model, metric, relation)]
            if points:
                what = "new answer" if metric == "new" else "old answer"
                name = f"{model}, {what}" + (f" ({relation})" if len(relations) > 1 else "")
                curves[name] = [e.value for e in points]
                bands[name] = ([e.low for e in points], [e.high for e in points])
    x = ["embed" if site == "L0.resid_pre" else site.replace("resid_", "") for site in sites]
    title = "What a probe reads at the last subject token (fitted on facts that were kept)"
    return line_plot(curves, x=x, title=title, unit="share of forget facts", bands=bands)


def _label(estimate: Estimate) -> str:
    relation = f" ({estimate.relation})" if estimate.relation else ""
    return f"{estimate.section}{relation}: {in_words(estimate.phrasing)}"
