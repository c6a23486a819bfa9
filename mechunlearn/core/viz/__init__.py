"""Arrays and curves as plotly figures: the only place that knows a colour.

1. Strings (layers, tokens) are tick labels of integer positions. Used as coordinates, equal tokens would fall
   into one column.
2. Colours diverge around 0: blue above, white at, red below, equally far on both sides. Where nothing lies
   below 0 only the blue half is drawn. A missing value is grey.
3. A figure is returned, never shown, and no global template is touched.

Labels are data and may hold ``<bos>``; plotly reads labels as markup, so they are escaped here.
"""
