"""Draw arrays and curves as plotly figures; all colours are defined here.

1. Strings (layers, tokens) are tick labels of integer positions. Used as coordinates, equal tokens would fall
   into one column.
2. Colours diverge around 0 on a symmetric scale: blue above, white at 0, red below. Where nothing lies below
   0 only the blue half is drawn. A missing value is grey.
3. A figure is returned, never shown, and no global template is changed.
4. Labels may contain ``<bos>``, which plotly would read as markup, so they are escaped.
"""
