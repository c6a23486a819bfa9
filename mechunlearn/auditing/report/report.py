"""The result of an audit as a value: every answer, with a table, figures and a verdict.

1. ``rows`` holds every model's answer to every question; everything else is computed from it.
2. ``table()`` gives means over facts with intervals and paired differences; ``to_frame()`` gives the same in
   pandas, one number a row.
3. ``verdict`` is a word and its reasons, by the rule in ``verdicts``.
4. A report shows itself as text in a terminal and as a table in Jupyter; ``to_html`` writes one
   self-contained file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechunlearn.auditing.report import figures as report_figures
from mechunlearn.auditing.report import html as report_html
from mechunlearn.auditing.report import table as report_table
from mechunlearn.auditing.report.estimates import Estimate, Row, estimates
from mechunlearn.auditing.report.verdicts import Verdict, decide
from mechunlearn.core.files import write_text

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """The result of an audit.

    Args:
        title: name of the edit.
        rows: every model's answer to every question.
        attacks: names of the attacks.
        absent: sections that could not be filled, each with the field that would provide it.
        notes: remarks for the reader, such as why there are no controls.
        seed: seed of the bootstrap.
        basis: what the rows of the untouched and the gold model depend on, for `audit(..., reuse=)`.

    Example:
        >>> report = Report("nothing", ())
        >>> report.verdict.word
        'no change'
    """

    title: str
    rows: tuple[Row, ...]
    attacks: tuple[str, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seed: int = 0
    basis: tuple[Any, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in the order of the report."""
        return tuple(dict.fromkeys(row.model for row in self.rows))

    @cached_property
    def verdict(self) -> Verdict:
        """The result in words; see ``verdicts`` for the rule."""
        return decide(self.rows, self.attacks, seed=self.seed)

    @cached_property
    def _table(self) -> tuple[Estimate, ...]:
        return estimates(self.rows, seed=self.seed)

    def table(self) -> tuple[Estimate, ...]:
        """All means over facts and all paired differences, with their intervals."""
        return self._table

    def estimate(
        self,
        section: str,
        phrasing: str = "",
        metric: str = "answer",
        *,
        model: str = "edited",
        relation: str = "",
    ) -> Estimate:
        """Return one number of the table.

        Args:
            section: name of the section, such as ``"forget"``.
            phrasing: kind of phrasing, such as ``"held_out"``.
            metric: ``"answer"``, ``"new"``, ``"p_answer"``, ``"p_new"`` or ``"nll"``.
            model: name of the model or difference, such as ``"gold"`` or ``"edited − untouched"``.
            relation: name of the relation, needed where a section has several.

        Raises:
            KeyError: there is not exactly one such number; the message lists what there is.
        """
        matches = [
            e
            for e in self._table
            if (e.model, e.section, e.phrasing, e.metric) == (model, section, phrasing, metric)
            and relation in ("", e.relation)
        ]
        if len(matches) != 1:
            choices = sorted({(e.section, e.phrasing, e.relation) for e in self._table if e.model == model})
            raise KeyError(
                f"{len(matches)} numbers for {model!r}, {section!r}, {phrasing!r}, {metric!r}, relation "
                f"{relation!r}; expected one of the sections, phrasings and relations {choices}"
            )
        return matches[0]

    def to_frame(self) -> pd.DataFrame:
        """The table in pandas: model, section, phrasing, relation, metric, value, low, high, n."""
        import pandas as pd

        return pd.DataFrame(self._table, columns=list(Estimate._fields))

    def rows_frame(self) -> pd.DataFrame:
        """Every answer in pandas, with the metrics as columns."""
        import pandas as pd

        return pd.DataFrame([{**row._asdict(), "values": None, **row.values} for row in self.rows]).drop(
            columns="values", errors="ignore"
        )

    @cached_property
    def figures(self) -> Mapping[str, go.Figure]:
        """Figures by name: overview, maintained, probe, and one for every attack."""
        return report_figures.figures(self._table, self.attacks)

    def __repr__(self) -> str:
        return report_table.text(self.title, str(self.verdict), self._table, self.absent, self.notes)

    def _repr_html_(self) -> str:
        return report_html.summary(self.title, self.verdict, self._table, self.absent, self.notes)

    def to_html(self, path: str | Path) -> None:
        """Write everything into one file, which needs no other file and no network.

        Args:
            path: path of the file; an existing one is replaced.
        """
        page = report_html.page(self.title, [self._repr_html_(), *self.figures.values()])
        write_text(path, page)
