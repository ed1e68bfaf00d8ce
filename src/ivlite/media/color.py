"""Colour conversion: any Pillow mode to RGB on white, and HDR video to SDR.

HDR is mapped by one fixed curve (docs/numerics.md):

  1. The coded signal becomes light. PQ: the EOTF of SMPTE ST 2084. HLG: the inverse OETF and the OOTF of BT.2100, for a
     display of 1000 cd/m2 (system gamma 1.2).
  2. Light is divided by the reference white of BT.2408, 203 cd/m2, and BT.2020 primaries become those of BT.709.
  3. All three components are scaled by f(m) / m, where m is the largest of them, which keeps their hue: Reinhard's curve
     f(m) = m / (m + 1) * (p + 1) / p, where p = 1000 / 203 is the light that becomes white; brighter light is clipped.
  4. The result is encoded for a BT.1886 display: the power 1 / 2.4.

FFmpeg's filters zscale=t=linear:npl=203:agamma=false and tonemap=reinhard:desat=0:peak=4.926 compute the same.
"""

from functools import cache

import numpy as np
from PIL import Image

PQ, HLG = 16, 18  # the transfer functions' numbers in H.273, which FFmpeg uses
HDR = (PQ, HLG)
BT709_PRIMARIES = 1
WHITE, PEAK = 203.0, 1000.0  # cd/m2
FROM_2020 = np.array(  # linear RGB of BT.2020 to BT.709: BT.2087, to six places
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
MODES = tuple("1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr HSV F I I;16 I;16B I;16L I;16N".split())  # of Pillow
LUMA_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)


@cache
def light(transfer):
    """float32 (65536,): the linear light of each 16-bit code of a component; PQ in units of WHITE, HLG scene light."""
    code = np.arange(65536) / 65535
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = code ** (1 / m2)
        return (10000 / WHITE * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)


def tone_mapped(codes, transfer, primaries):
    """Tone-maps full-range RGB in PQ or HLG, uint16 (h, w, 3), to SDR, uint8 (h, w, 3)."""
    rgb = light(transfer)[codes]
    if transfer == HLG:
        rgb *= (PEAK / WHITE) * (rgb @ LUMA_2020)[..., None] ** np.float32(0.2)
    if primaries != BT709_PRIMARIES:
        rgb = np.maximum(rgb @ FROM_2020.T, 0)
    most = np.maximum(rgb.max(-1, keepdims=True), np.float32(1e-6))
    rgb *= (1 + WHITE / PEAK) / (most + 1)  # f(m) / m
    return (np.minimum(rgb, 1) ** np.float32(1 / 2.4) * 255 + 0.5).astype(np.uint8)


def on_white(image):
    """An RGB image of an RGBA image laid on white."""
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def to_rgb(image):
    """A function that converts `image` (of one of MODES), or a part of it, to RGB on white.

    Integers of more than 8 bits (modes I;16 and I) are 16-bit values; floats are 0 to 1 if none is above 1, else 0 to
    255.
    """
    if image.mode == "F":
        top = 1 if brightest(image) <= 1 else 255
        return lambda part: grey(np.clip(np.nan_to_num(np.asarray(part)), 0, top) * np.float32(255 / top))
    if image.mode.startswith("I"):
        return deep_grey
    if image.has_transparency_data:
        # Pillow converts premultiplied alpha to RGB only via RGBA
        plain = {"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)
        return lambda part: on_white((part if plain == part.mode else part.convert(plain)).convert("RGBA"))
    return lambda part: part if part.mode == "RGB" else part.convert("RGB")


def grey(values):
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def deep_grey(part):
    """RGB of 16-bit grey, scaled from 0..65535; the transparent value becomes white."""
    values = np.asarray(part)
    shown = np.clip(values, 0, 65535) // 257
    clear = part.info.get("transparency")
    return grey(np.where(values == clear, 255, shown) if isinstance(clear, int) else shown)


def brightest(image):
    """The largest finite value of an image of floats."""
    rows = max(1, (1 << 22) // image.width)
    parts = (image.crop((0, y, image.width, min(y + rows, image.height))) for y in range(0, image.height, rows))
    return max(np.max(np.nan_to_num(np.asarray(part), posinf=0, neginf=0)) for part in parts)
