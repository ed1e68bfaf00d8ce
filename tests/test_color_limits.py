"""Colours against published numbers, and against the formulas of docs/numerics.md written once more in float64."""

import numpy as np
import pytest
from PIL import Image

from ivlite.media.color import FROM_2020, HLG, PQ, brightest, light, to_rgb, tone_mapped

# ITU-R BT.2087, linear BT.709 to BT.2020.
TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


# cd/m2 of PQ codes: ST 2084 in 10 bits, full range (520 and 769 of BT.2408's narrow range are other codes).
@pytest.mark.parametrize(
    "code, shown",
    [(0, 0), (0.15, 1.0), (0.508078, 100), (0.58069, 203), (0.751827, 1000), (0.902572, 4000), (1, 10000)],
)
def test_light_of_pq(code, shown):
    assert light(PQ)[round(code * 65535)] * 203 == pytest.approx(shown, rel=0.01, abs=1e-9)


@pytest.mark.parametrize(
    "code, scene", [(0, 0), (0.25, 1 / 48), (0.5, 1 / 12), (0.75, 0.26496), (0.871643, 0.5), (1, 1)]
)
def test_light_of_hlg(code, scene):
    assert light(HLG)[round(code * 65535)] == pytest.approx(scene, rel=2e-3, abs=1e-9)
    assert light(HLG).shape == (65536,) and (np.diff(light(HLG)) > 0).all()


def test_primaries():
    assert FROM_2020 @ TO_2020 == pytest.approx(np.eye(3), abs=2e-4) and FROM_2020.sum(1) == pytest.approx(
        np.ones(3), abs=3e-6
    )


def shown(codes, transfer, primaries):
    """docs/numerics.md, in float64."""
    code = np.asarray(codes) / 65535
    if transfer == PQ:
        root = code ** (32 / 2523)
        rgb = 10000 * (np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)) ** (16384 / 2610) / 203
    else:
        rgb = np.where(code <= 0.5, code**2 / 3, (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        rgb = rgb * (rgb @ [0.2627, 0.6780, 0.0593])[..., None] ** 0.2 * 1000 / 203
    if primaries != 1:
        rgb = np.maximum(rgb @ np.linalg.inv(TO_2020).T, 0)
    most, peak = rgb.max(-1, keepdims=True), 1000 / 203
    with np.errstate(invalid="ignore"):
        rgb = np.nan_to_num(rgb / most * (most / (most + 1) * (peak + 1) / peak))
    return 255 * np.minimum(rgb, 1) ** (1 / 2.4)


@pytest.mark.parametrize("transfer", [PQ, HLG])
@pytest.mark.parametrize("primaries", [1, 9])
def test_every_colour(transfer, primaries, rng):
    codes = rng.integers(0, 65536, (40, 50, 3)).astype(np.uint16)
    codes[:5] = codes[:5, :, :1]  # greys
    codes[5], codes[6], codes[7] = 65535, 0, codes[7] // 256
    got = tone_mapped(codes, transfer, primaries)
    assert got.dtype == np.uint8 and np.abs(got - shown(codes, transfer, primaries)).max() < (
        1.1 if primaries == 1 else 2
    )  # four places of TO_2020
    assert got[6].max() == 0 and got[5].min() == 255


# ------------------------------------------------------------------------------------------------ modes of Pillow


def rgb(image):
    return np.asarray(to_rgb(image)(image)).astype(int)


def test_grey_of_sixteen_bits():
    table = [(0, 0), (256, 0), (257, 1), (32767, 127), (32896, 128), (65534, 254), (65535, 255)]
    values = np.array([[value for value, _ in table]])
    for mode, beyond in (("I;16", []), ("I", [(-5, 0), (70000, 255)])):
        data = np.array([[value for value, _ in table + beyond]])
        image = Image.fromarray(data.astype(np.uint16 if mode == "I;16" else np.int32))
        assert image.mode == mode and (rgb(image) == np.array([[s] * 3 for _, s in table + beyond])).all()
    image = Image.fromarray(values.astype(np.uint16))
    image.info["transparency"] = 257
    assert rgb(image)[0, :, 0].tolist() == [0, 0, 255, 127, 128, 254, 255]
    image.info["transparency"] = b"257"
    assert rgb(image)[0, 2, 0] == 1


@pytest.mark.parametrize("top, table", [
    (1.0, [(0, 0), (0.5, 127), (1, 255), (-1, 0)]), (1.001, [(0.5, 0), (1.001, 1)]), (255, [(0, 0), (127.9, 127), (255, 255), (-3, 0)]),
    (300, [(254, 254), (300, 255)]),
])  # fmt: skip
def test_floats_are_of_one_or_of_255(top, table):
    values = [value for value, _ in table]
    odd = [np.nan, np.inf, -np.inf]
    image = Image.fromarray(np.array([values + odd + [top]], np.float32))
    assert image.mode == "F" and brightest(image) == np.float32(top)
    got = rgb(image)[0]
    assert got[: len(table), 0].tolist() == [s for _, s in table] and (got == got[:, :1]).all()
    assert got[len(table) : len(table) + 3, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize("height", [1, 3, 4, 5, 9])
def test_the_brightest_of_an_image_in_parts(monkeypatch, height):
    values = np.zeros((height, 1 << 20), np.float32)  # four rows at a time
    values[-1, -1] = 7
    image = Image.fromarray(values)
    crops, crop = [], image.crop
    image.crop = lambda box: crops.append(box) or crop(box)
    assert brightest(image) == 7
    assert [(box[1], box[3]) for box in crops] == [(y, min(y + 4, height)) for y in range(0, height, 4)]


def test_transparent_pictures_lie_on_white():
    half = Image.new("RGBA", (2, 1), (100, 0, 0, 128))
    half.putpixel((1, 0), (9, 9, 9, 0))
    assert rgb(half)[0].tolist() == [[177, 127, 127], [255, 255, 255]]
    premultiplied = half.convert("RGBa")
    assert np.abs(rgb(premultiplied)[0] - [[177, 127, 127], [255, 255, 255]]).max() <= 1
    for mode in ("LA", "La"):
        assert rgb(Image.new("LA", (1, 1), (0, 128)).convert(mode))[0].tolist() == [[127] * 3]
    plain = Image.new("RGB", (1, 1), (1, 2, 3))
    assert to_rgb(plain)(plain) is plain and rgb(Image.new("L", (1, 1), 9)).tolist() == [[[9, 9, 9]]]
    plain.info["transparency"] = (1, 2, 3)
    assert rgb(plain).tolist() == [[[255, 255, 255]]]
