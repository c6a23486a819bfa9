"""Draw the picture of the page on inputs: `python docs/inputs_picture.py` writes `images/inputs.svg`."""

from pathlib import Path

from engine_picture import arrow, text

WIDTH, HEIGHT = 740, 330
INK, PALE = "#333333", "#767676"
GREY, BLUE, DEEP, ORANGE, GREEN, WHITE = "#ececec", "#a9cbe6", "#4a90c8", "#e07b28", "#2f6f4f", "#ffffff"

PARTS = (
    ("opening", "<s>[INST] "),
    ("prompt", "Yao Ming plays the"),
    ("closing", " [/INST]"),
    ("join", " "),
    ("answer", "NBA"),
    ("end", " </s>"),
)
# Token, its role below, fill; roles are written once, under the middle of their tokens.
TOKENS = (
    ("<s>", "", GREY), ("[", "", GREY), ("INST", "", GREY), ("]", "", GREY), (" Y", "first_subject", BLUE),
    ("ao", "middle_subject", BLUE), (" Ming", "last_subject", DEEP), (" plays", "further", GREY),
    (" the", "further", GREY), (" [", "further", GREY), ("/INST", "further", GREY), ("]", "last", ORANGE),
    (" N", "answer", GREEN), ("BA", "answer", GREEN), (" </s>", "end", WHITE),
)  # fmt: skip
TEXT_Y, TOKEN_Y = 92, 190


def part(x: float, name: str, words: str) -> tuple[str, float]:
    """A part of the text in its box, with its name above; and where the next begins."""
    width = 14 + 8.4 * max(len(words), 2)
    shown = words.replace(" ", "·") if not words.strip() else words.strip()
    drawn = (
        f'<rect x="{x:g}" y="{TEXT_Y}" width="{width:g}" height="32" rx="4" fill="{WHITE}" stroke="{INK}"/>'
        + text(x + width / 2, TEXT_Y + 21, shown, size=14)
        + text(x + width / 2, TEXT_Y - 10, name, size=12, colour=PALE)
    )
    return drawn, x + width + 22


def token(x: float, words: str, fill: str) -> tuple[str, float]:
    """A token; its space is drawn as a dot."""
    width = 16 + 8.0 * len(words)
    colour = WHITE if fill in (DEEP, ORANGE, GREEN) else INK
    drawn = (
        f'<rect x="{x:g}" y="{TOKEN_Y}" width="{width:g}" height="30" rx="3" fill="{fill}" stroke="{INK}" '
        'stroke-width="0.6"/>'
    ) + text(x + width / 2, TOKEN_Y + 20, words.replace(" ", "·"), size=13, colour=colour)
    return drawn, x + width


def roles(ends: list[tuple[float, float]]) -> list[str]:
    """The names of the roles under their tokens; neighbours of one role share a line."""
    drawn, start = [], 0
    while start < len(TOKENS):
        role = TOKENS[start][1]
        stop = start
        while stop + 1 < len(TOKENS) and TOKENS[stop + 1][1] == role:
            stop += 1
        if role:
            left, right = ends[start][0], ends[stop][1]
            low = TOKEN_Y + 36 + (20 if role in ("middle_subject", "last") else 0)
            line = f'x1="{left + 2:g}" x2="{right - 2:g}" y1="{TOKEN_Y + 35}" y2="{TOKEN_Y + 35}"'
            drawn.append(f'<line {line} stroke="{PALE}"/>')
            drawn.append(text((left + right) / 2, low + 14, role, size=11, colour=PALE))
        start = stop + 1
    return drawn


def picture() -> str:
    """The whole picture."""
    drawn, x = [text(20, 30, "A fact of a chat model, scored with its answer", size=15, anchor="start")], 40.0
    for name, words in PARTS:
        box, after = part(x, name, words)
        drawn.append(box)
        if name != PARTS[-1][0]:
            drawn.append(text(after - 11, TEXT_Y + 21, "+", size=14, colour=PALE))
        x = after
    drawn.append(text(x + 6, TEXT_Y + 21, "one text", size=12, colour=PALE, anchor="start"))
    drawn.append(arrow(330, TEXT_Y + 44, 330, TOKEN_Y - 10))
    drawn.append(
        text(344, TEXT_Y + 70, "tokenised in one call; characters tell the role of each token", size=12,
             colour=PALE, anchor="start")
    )  # fmt: skip
    x, ends = 40.0, []
    for words, _, fill in TOKENS:
        box, after = token(x, words, fill)
        drawn.append(box)
        ends.append((x, after))
        x = after + 3
    drawn += roles(ends)
    drawn.append(
        text(20, 300, "Rows are padded on the right and masked; the logits at “last” predict the first token "
             "of the answer.", size=12, colour=PALE, anchor="start")
    )  # fmt: skip
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>'
    )
    body = "\n".join(drawn)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
        f'{tip}<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>{body}</svg>\n'
    )


if __name__ == "__main__":
    (Path(__file__).parent / "images" / "inputs.svg").write_text(picture(), encoding="utf-8")
