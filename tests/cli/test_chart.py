"""The drawing of `ivlite eval --report`: where its marks lie."""

import io
import math
import re

import pytest
from PIL import Image

from ivlite.cli import chart


def result(file, bits, **kinds):
    names = (
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
    values = dict.fromkeys(names, 2) | {"flips": None}
    return {"file": file, "bits_per_weight": bits, "kinds": {k: values | {"mean_kl": kl} for k, kl in kinds.items()}}


RESULTS = [
    result("a/q8_0.gguf", 8.5, text=1e-3, video=1e-2),
    result("q4_0.gguf", 4.5, text=0.1, video=0),
    result("x.gguf", 6, text=0.01),
]


@pytest.fixture
def drawing():
    return list(chart.marks("a title", RESULTS))


def places(drawing, text):
    return [(x, y) for kind, x, y, *rest in drawing if kind == "text" and rest[-1] == text]


def test_the_axes_are_linear_in_bits_and_decades(drawing):
    xs = [places(drawing, str(n))[0] for n in range(4, 10)]
    assert xs[0] == (80, 478) and xs[-1] == pytest.approx((790, 478))
    assert [b[0] - a[0] for a, b in zip(xs, xs[1:], strict=False)] == pytest.approx([142] * 5)
    ys = [places(drawing, f"{10.0**p:g}")[0] for p in range(-8, 1)]
    assert ys[0] == (72, 464) and ys[-1] == pytest.approx((72, 54))
    assert [a[1] - b[1] for a, b in zip(ys, ys[1:], strict=False)] == pytest.approx([51.25] * 8)
    grid = [mark for mark in drawing if mark[0] == "line" and mark[-1] == "#dddddd"]
    assert len(grid) == 6 + 9
    assert all(m[1] == m[3] and {m[2], m[4]} == {460, 50} or m[2] == m[4] and (m[1], m[3]) == (80, 790) for m in grid)
    assert places(drawing, "bits per weight") == [(435, 505)] and places(drawing, "mean KL") == [(72, 38)]
    assert places(drawing, "a title") == [(410, 30)]


def at(bits, kl):
    return pytest.approx((80 + (bits - 4) * 142, 50 - 51.25 * math.log10(kl)))


def test_each_kind_is_a_line_through_its_points(drawing):
    dots = {c: [m[1:3] for m in drawing if m[0] == "dot" and m[3] == c] for c in chart.COLORS.values()}
    text, video = chart.COLORS["text"], chart.COLORS["video"]
    assert dots[text][0] == (95, 445) and dots[video][0] == (95, 427)  # the legend
    assert places(drawing, "text") == [(105, 449)] and places(drawing, "video") == [(105, 431)]
    for got, bits, kl in zip(dots[text][1:], (4.5, 6, 8.5), (0.1, 0.01, 1e-3), strict=True):
        assert got == at(bits, kl)
    for got, bits, kl in zip(dots[video][1:], (4.5, 8.5), (1e-7, 1e-2), strict=True):  # a logarithmic axis has no zero
        assert got == at(bits, kl)
    lines = [m for m in drawing if m[0] == "line" and m[-1] == text]
    assert [m[1:5] for m in lines] == [(*a, *b) for a, b in zip(dots[text][1:], dots[text][2:], strict=False)]
    assert len([m for m in drawing if m[0] == "line" and m[-1] == video]) == 1
    assert dots[chart.COLORS["image"]] == dots[chart.COLORS["all"]] == []


def test_a_file_is_named_above_its_highest_point(drawing):
    for name, bits, kl in (("q8_0", 8.5, 1e-2), ("q4_0", 4.5, 0.1), ("x", 6, 0.01)):
        x, y = at(bits, kl).expected
        assert places(drawing, name) == [pytest.approx((x, y - 10))]


@pytest.mark.parametrize("wide, step", [(11.4, 1), (13, 2), (24.5, 3)])
def test_a_wide_axis_has_fewer_numbers(wide, step):
    drawing = list(chart.marks("", [result("a", 1.3, text=1e-2), result("b", 1.3 + wide, text=1e-2)]))
    numbers = [int(m[5]) for m in drawing if m[0] == "text" and m[3] == "middle" and re.fullmatch(r"\d+", m[5])]
    assert numbers == list(range(1, math.ceil(1.55 + wide) + 1, step))
    powers = [m[5] for m in drawing if m[0] == "text" and m[3] == "end"]
    assert powers == ["0.001", "0.01", "0.1", "mean KL"]  # a decade to both sides of points on the grid


def test_the_page_holds_drawing_and_table():
    text = chart.page(
        "<t>",
        [("dot", 1.25, 2, "#123456"), ("line", 0, 1, 2.06, 3, "red"), ("text", 4, 5, "end", "blue", "<&>")],
        RESULTS,
    )
    text = text.decode()
    assert '<circle cx="1.2" cy="2.0" r="4" fill="#123456"/>' in text
    assert '<line x1="0.0" y1="1.0" x2="2.1" y2="3.0" stroke="red"/>' in text
    assert '<text x="4.0" y="5.0" text-anchor="end" fill="blue">&lt;&amp;&gt;</text>' in text
    assert text.count("&lt;t&gt;") == 2 and "<t>" not in text and 'viewBox="0 0 820 520"' in text
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    assert len(rows) == 6 and rows[0].count("<th>") == 13 and "<th>mean kl</th>" in rows[0]
    cells = re.findall("<td>(.*?)</td>", rows[1])
    assert cells[:4] == ["a/q8_0.gguf", "8.5", "text", "0.001"] and cells[9] == "-" and len(cells) == 13


def test_names_that_are_no_text_are_drawn(tmp_path):
    for name in ("r.html", "r.png"):
        chart.write(str(tmp_path / name), "\udcff.ref", [result("\udcfe.gguf", 4.5, text=0.1)])
    assert "?.gguf" in (tmp_path / "r.html").read_text()


def test_the_picture_is_twice_the_size():
    marks = [
        ("dot", 100, 50, "#ff0000"),
        ("line", 10, 20, 300, 20, "#0000ff"),
        ("text", 400, 200, "middle", "#000000", "IIII"),
    ]
    image = Image.open(io.BytesIO(chart.picture("", marks, []))).convert("RGB")
    assert image.size == (1640, 1040)
    pixels = image.load()
    red, blue, white = (255, 0, 0), (0, 0, 255), (255, 255, 255)
    assert pixels[200, 100] == pixels[192, 100] == pixels[208, 100] == pixels[200, 92] == pixels[200, 108] == red
    assert pixels[190, 100] == pixels[210, 100] == pixels[200, 90] == pixels[200, 110] == white
    assert pixels[20, 40] == pixels[600, 40] == blue and pixels[18, 40] == pixels[603, 40] == pixels[300, 43] == white
    rows = {y for y in range(1040) for x in range(700, 900) if pixels[x, y] == (0, 0, 0)}
    columns = {x for x in range(700, 900) for y in range(340, 420) if pixels[x, y] == (0, 0, 0)}
    assert 395 <= max(rows) <= 400 and 375 <= min(rows) <= 385  # 26 points high, on the baseline
    assert abs((min(columns) + max(columns)) / 2 - 800) <= 2
