"""Draws KL against bits per weight: a page with an inline SVG, or a PNG. Both draw the same list of marks."""

import html
import math
import os

WIDTH, HEIGHT = 820, 520
LEFT, RIGHT, TOP, BOTTOM = 80, 30, 50, 60  # margins
COLORS = {"text": "#1f5fa8", "image": "#c26a00", "video": "#2b8a3e", "all": "#444444"}
FLOOR = 1e-7  # of KL: a logarithmic axis has no zero
STYLE = "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}td,th{padding:.2em .8em;text-align:right}"


def write(path, reference, results):
    """Writes the report of `ivlite eval`'s results to a .html or .png file. Raises DiskError."""
    from ivlite import output

    title = f"KL against {os.path.basename(reference)}"
    form = {".html": page, ".png": picture}[os.path.splitext(path)[1].lower()]
    data = form(title, list(marks(title, results)), results)
    output.write(path, data)


def scale(low, high, start, end):
    """A linear map of [low, high] to [start, end]."""
    return lambda x: start + (x - low) / (high - low) * (end - start)


def marks(title, results):
    """The drawing: ("line", x0, y0, x1, y1, color), ("dot", x, y, color), ("text", x, y, anchor, color, text)."""
    bits = [r["bits_per_weight"] for r in results]
    kl = [max(s["mean_kl"], FLOOR) for r in results for s in r["kinds"].values()]
    left, right = math.floor(min(bits) - 0.25), math.ceil(max(bits) + 0.25)
    low, high = math.floor(math.log10(min(kl)) - 0.1), math.ceil(math.log10(max(kl)) + 0.1)
    x, y = scale(left, right, LEFT, WIDTH - RIGHT), scale(low, high, HEIGHT - BOTTOM, TOP)
    yield "text", WIDTH / 2, TOP - 20, "middle", "#000000", title
    yield from axes(left, right, low, high, x, y)
    kinds = list(dict.fromkeys(kind for r in results for kind in r["kinds"]))
    for i, kind in enumerate(kinds):
        yield "dot", LEFT + 15, HEIGHT - BOTTOM - 15 - 18 * i, COLORS[kind]
        yield "text", LEFT + 25, HEIGHT - BOTTOM - 11 - 18 * i, "start", COLORS[kind], kind
        points = sorted((r["bits_per_weight"], r["kinds"][kind]["mean_kl"]) for r in results if kind in r["kinds"])
        points = [(x(b), y(math.log10(max(k, FLOOR)))) for b, k in points]
        for a, b in zip(points, points[1:], strict=False):
            yield "line", *a, *b, COLORS[kind]
        for point in points:
            yield "dot", *point, COLORS[kind]
    for r in results:
        at = min(y(math.log10(max(s["mean_kl"], FLOOR))) for s in r["kinds"].values())
        name = os.path.splitext(os.path.basename(r["file"]))[0]
        yield "text", x(r["bits_per_weight"]), at - 10, "middle", "#000000", name


def axes(left, right, low, high, x, y):
    """Grid and numbers: bits per weight to the right, decades of KL upwards."""
    step = max(1, math.ceil((right - left) / 12))
    for value in range(left, right + 1, step):
        yield "line", x(value), y(low), x(value), y(high), "#dddddd"
        yield "text", x(value), y(low) + 18, "middle", "#000000", str(value)
    for power in range(low, high + 1):
        yield "line", x(left), y(power), x(right), y(power), "#dddddd"
        yield "text", x(left) - 8, y(power) + 4, "end", "#000000", f"{10.0**power:g}"
    yield "text", (x(left) + x(right)) / 2, HEIGHT - 15, "middle", "#000000", "bits per weight"
    yield "text", x(left) - 8, y(high) - 12, "end", "#000000", "mean KL"


def page(title, drawing, results):
    """A self-contained HTML page: the drawing and the table."""
    shapes = "".join(SHAPES[kind](*rest) for kind, *rest in drawing)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" font-family="sans-serif" font-size="13">{shapes}</svg>'
    names = (
        "mean_kl",
        "p99_kl",
        "answer_kl",
        "top1",
        "perplexity",
        "reference_perplexity",
        "flips",
        "answers",
        "prompts",
        "tokens",
    )
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in ("file", "bits_per_weight", "kind", *names))
    body = ""
    for r in results:
        for kind, s in r["kinds"].items():
            cells = [
                html.escape(r["file"]),
                r["bits_per_weight"],
                kind,
                *("-" if s[n] is None else s[n] for n in names),
            ]
            body += (
                "<tr>"
                + "".join(f"<td>{c:.5g}</td>" if isinstance(c, float) else f"<td>{c}</td>" for c in cells)
                + "</tr>"
            )
    text = f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f"{text}<h1>{html.escape(title)}</h1>{svg}<table><tr>{head}</tr>{body}</table>\n".encode(
        errors="replace"
    )  # names of files may be no text


SHAPES = {
    "line": lambda x0, y0, x1, y1, color: (
        f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{color}"/>'
    ),
    "dot": lambda x, y, color: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>',
    "text": lambda x, y, anchor, color, text: (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{html.escape(text)}</text>'
    ),
}


def picture(title, drawing, results):
    """The drawing alone, as the bytes of a PNG."""
    import io

    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (2 * WIDTH, 2 * HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(26)
    anchors = {"start": "ls", "middle": "ms", "end": "rs"}
    for kind, *rest in drawing:
        if kind == "line":
            draw.line([2 * v for v in rest[:4]], fill=rest[4], width=2)
        elif kind == "dot":
            cx, cy = 2 * rest[0], 2 * rest[1]
            draw.ellipse([cx - 8, cy - 8, cx + 8, cy + 8], fill=rest[2])
        else:
            draw.text((2 * rest[0], 2 * rest[1]), rest[4], fill=rest[3], font=font, anchor=anchors[rest[2]])
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
