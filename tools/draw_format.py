"""Draw how an FP16 weight is stored so that 4 of its bits are a draft: writes docs/format.svg.

The weight is that of the worked example in docs/number-format.md, as the codec stores it.
Run: python tools/draw_format.py [--output FILE]
"""

import argparse
from pathlib import Path

import numpy as np

from speqc.runtime.bsfp import encode
from speqc.runtime.codebook import UNUSED, load_codebook, scale_class

WIDTH, HEIGHT = 880, 424
SIGN, EXPONENT, MANTISSA, CODE, SLOT = "#f4b183", "#9dc3e6", "#d9d9d9", "#ffd966", "#a9d18e"
CELL = 30
PLANES = (200, 350, 500, 650)
"""Where the four planes begin."""


def text(
    x: float,
    y: float,
    words: str,
    size: int = 13,
    anchor: str = "start",
    weight: str = "normal",
    family: str = "sans-serif",
) -> str:
    """Words at a place."""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}" fill="#222" font-family="{family}">{words}</text>'
    )


def cells(x: int, y: int, bits: str, colours: list[str]) -> list[str]:
    """Bits in boxes of their colours."""
    parts = []
    for place, (bit, colour) in enumerate(zip(bits, colours, strict=True)):
        left = x + place * CELL
        parts.append(box(left, y, CELL, CELL, colour))
        parts.append(text(left + CELL / 2, y + 20, bit, 15, "middle", family="monospace"))
    return parts


def box(x: int, y: int, width: int, height: int, fill: str, stroke: str = "#555") -> str:
    """A filled rectangle."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}" stroke="{stroke}"/>'
    )


def brace(left: int, right: int, y: int, words: str) -> list[str]:
    """A brace below boxes, with words."""
    path = f'<path d="M{left + 2} {y} v6 H{right - 2} v-6" fill="none" stroke="#555"/>'
    return [path, text((left + right) / 2, y + 21, words, 12, "middle")]


def arrow(x0: int, y0: int, x1: int, y1: int) -> str:
    """An arrow from one place to another."""
    return (
        f'<path d="M{x0} {y0} L{x1} {y1}" stroke="#777" stroke-width="1.5" fill="none" '
        'marker-end="url(#a)"/>'
    )


def drawing() -> str:
    """The picture as SVG."""
    weights = np.linspace(-0.05, 0.05, 64, dtype=np.float16).reshape(64, 1)
    bits, book, k = weights.view(np.uint16), load_codebook("sets"), 50
    encoded = encode(bits, book, 64)
    pattern, scale = int(bits[k, 0]), encoded.scales[0, 0]
    nibble, rest = int(encoded.codes[k, 0]), int(encoded.rest[k, 0])
    code, slot, exponent = nibble & 7, rest >> 10, pattern >> 10 & 31
    table = int(scale_class(scale.view(np.uint16)))
    level, size = float(book.levels[code]), abs(float(scale))
    parts = [
        text(20, 30, "An FP16 weight", 15, weight="bold"),
        text(20, 50, f"{pattern:#06x} = {float(weights[k, 0]):.5f}", family="monospace"),
        *cells(200, 20, f"{pattern:016b}", [SIGN, *[EXPONENT] * 5, *[MANTISSA] * 10]),
        *brace(200, 230, 52, "sign"),
        *brace(230, 380, 52, f"exponent {exponent}"),
        *brace(380, 680, 52, "mantissa"),
        text(20, 152, "as it is stored:", 15, weight="bold"),
        text(20, 172, "16 bits in four planes"),
    ]
    stored = f"{nibble:04b}{rest:012b}"
    colours = [SIGN, *[CODE] * 3, *[SLOT] * 2, *[MANTISSA] * 10]
    for plane, x in enumerate(PLANES):
        part = slice(4 * plane, 4 * plane + 4)
        parts += cells(x, 140, stored[part], colours[part])
    parts += [
        arrow(215, 80, 215, 136),
        arrow(305, 80, 275, 136),
        arrow(310, 80, 380, 136),
        arrow(530, 80, 445, 136),
        arrow(535, 80, 560, 136),
        arrow(540, 80, 705, 136),
        *brace(200, 320, 172, f"F: sign, code {code}"),
        *brace(350, 410, 172, f"slot {slot}"),
        *brace(410, 770, 172, "mantissa, as it was"),
        text(260, 212, "draft plane", anchor="middle", weight="bold"),
        '<path d="M350 206 H770" stroke="#bbb"/>',
        text(
            560,
            224,
            "R: slot and mantissa; full steps read all of it, drafts of 8 or 12 bits a part",
            12,
            "middle",
        ),
        text(20, 276, "One scale", 15, weight="bold"),
        text(20, 296, "for each 64 weights"),
        box(200, 262, 170, 44, "#f2f2f2"),
        text(285, 281, f"{float(scale):.4g} (FP16)", anchor="middle", family="monospace"),
        text(285, 298, f"some of its bits: table {table}", 12, "middle"),
        text(430, 256, f"table {table}: which exponents each code may stand for", 12),
        arrow(372, 284, 426, 284),
    ]
    for number, owned in enumerate(book.exponents[table].tolist()):
        x = 430 + 52 * number
        digits = [np.base_repr(e, 32).lower() for e in owned if e != UNUSED]
        if number == code:
            digits[slot] = f'<tspan fill="#c00000" font-weight="bold">{digits[slot]}</tspan>'
        parts += [
            box(x, 262, 52, 44, CODE if number == code else "#fff"),
            text(x + 26, 279, f"code {number}", 11, "middle"),
            text(x + 26, 298, "".join(digits), 14, "middle", family="monospace"),
        ]
    draft = f"level[{code}] x {size:.5f} = {level:.3f} x {size:.5f} = {level * size:.4f}"
    full = f"exponent = table {table}, code {code}, slot {slot} = {exponent} → {pattern:#06x}"
    parts += [
        box(20, 352, 400, 56, "#fff7e0", "#bf9000"),
        text(32, 374, "A draft step reads F and the scale: 4.25 bits", weight="bold"),
        text(32, 395, draft, family="monospace"),
        box(440, 352, 420, 56, "#eaf3e3", "#548235"),
        text(452, 374, "A full step reads all: the same 16 bits again", weight="bold"),
        text(452, 395, full, family="monospace"),
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" '
        'aria-label="How an FP16 weight is stored so that 4 of its bits are a draft">'
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#777"/></marker></defs>'
    )
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    return "\n".join([head, background, *parts, "</svg>"]) + "\n"


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description="draw the number format")
    default = Path(__file__).resolve().parent.parent / "docs" / "format.svg"
    parser.add_argument("--output", type=Path, default=default, help="file to write")
    parser.parse_args().output.write_text(drawing(), encoding="utf-8")


if __name__ == "__main__":
    main()
