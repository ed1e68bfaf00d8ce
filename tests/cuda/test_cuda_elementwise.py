"""Norms, rotary embedding, activations, patches and copies on a card, against the formulas in float64, and against the CPU."""

import numpy as np
import pytest

from ivlite import ops

EPS = 1e-6


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def padded(device, x, margin=3):
    """Rows of x with guards between them: (Buffer, (address, row stride))."""
    wide = np.full((len(x), x.shape[1] + margin), np.nan, np.float32)
    wide[:, : x.shape[1]] = x
    buffer = device.array(wide)
    return buffer, (buffer.pointer, wide.shape[1])


def outputs(device, rows, cols, margin=5):
    """(a function that returns the rows and checks what lies between them, (address, row stride))."""
    guard = np.float32(-12345.5)
    buffer = device.array(np.full((rows, cols + margin), guard, np.float32))

    def read():
        found = buffer.numpy()
        assert (found[:, cols:] == guard).all(), "a kernel wrote between rows"
        return found[:, :cols]

    return read, (buffer.pointer, cols + margin)


@pytest.mark.parametrize("rows, n", [(1, 1), (3, 31), (2, 128), (5, 1152), (1, 4096), (2, 4099)])
def test_norms(device, rng, rows, n):
    x, w, b = 3 * normal(rng, rows, n) + 1, normal(rng, n), normal(rng, n)
    (_x, at), w_at, b_at = padded(device, x), device.array(w), device.array(b)
    y, to = outputs(device, rows, n)
    device.cuda.rms_norm(to, at, w_at.pointer, n, rows, EPS, 0)
    exact = x.astype(np.float64)
    expected = exact / np.sqrt((exact**2).mean(1, keepdims=True) + EPS) * w
    assert np.allclose(y(), expected, rtol=2e-5, atol=2e-5)
    device.cuda.layer_norm(to, at, w_at.pointer, b_at.pointer, n, rows, EPS, 0)
    expected = (exact - exact.mean(1, keepdims=True)) / np.sqrt(exact.var(1, keepdims=True) + EPS) * w + b
    assert np.allclose(y(), expected, rtol=2e-5, atol=2e-5 if n > 1 else 1e-3)


def test_a_row_that_is_not_finite_stays_alone(device, rng):
    x, w = normal(rng, 3, 100), np.ones(100, np.float32)
    x[1, 7] = np.nan
    (_x, at), w_at = padded(device, x), device.array(w)
    y, to = outputs(device, 3, 100)
    device.cuda.rms_norm(to, at, w_at.pointer, 100, 3, EPS, 0)
    assert np.isnan(y()[1]).all() and np.isfinite(y()[[0, 2]]).all()


@pytest.mark.parametrize("tokens, heads, d", [(1, 1, 2), (3, 4, 8), (2, 32, 128), (65, 16, 72)])
@pytest.mark.parametrize("interleaved", [True, False])
def test_rope(device, rng, tokens, heads, d, interleaved):
    """Of a part of wider heads, as queries have them."""
    whole, angles = normal(rng, tokens, heads, d + 6), normal(rng, tokens, d // 2)
    x, cos, sin = device.array(whole), device.array(np.cos(angles)), device.array(np.sin(angles))
    y = device.empty((tokens, heads, d))
    at = x.pointer + 4 * 6, heads * (d + 6), d + 6
    device.cuda.rope(y.pointer, at, cos.pointer, sin.pointer, heads, d, interleaved, tokens, 0)
    part = whole[:, :, 6:].astype(np.float64)
    a, b = (part[..., ::2], part[..., 1::2]) if interleaved else (part[..., : d // 2], part[..., d // 2 :])
    c, s = np.cos(angles.astype(np.float64))[:, None], np.sin(angles.astype(np.float64))[:, None]
    assert np.allclose(y.numpy(), np.concatenate([a * c - b * s, b * c + a * s], -1), atol=1e-6)


@pytest.mark.parametrize("rows, cols", [(1, 1), (3, 255), (2, 1024), (1, 4304), (17, 1030)])
def test_activations(device, rng, rows, cols, plainly):
    """Against the CPU's plain kernels, infinities included."""
    cpu = ops.get("cpu")
    x = 4 * normal(rng, rows, 2 * cols)
    x.reshape(-1)[:: max(1, x.size // 5)] = [np.inf, -np.inf, 0, 60, -60, 1e30][
        : len(x.reshape(-1)[:: max(1, x.size // 5)])
    ]
    y, to = outputs(device, rows, cols)
    with np.errstate(all="ignore"):
        expected = plainly(cpu.silu_mul, x)
    _x, at = padded(device, x)
    device.cuda.silu_mul(to, at, cols, rows, 0)
    assert np.allclose(y(), expected, rtol=3e-6, atol=2e-6, equal_nan=True)
    finite = np.clip(x[:, :cols], -50, 50)
    one = cpu.weight("f32", cpu.encode("f32", np.eye(cols, dtype=np.float32)), (cols, cols)) if cols < 1100 else None
    _x, at = padded(device, finite)
    for name in ("gelu_tanh", "gelu_erf"):
        getattr(device.cuda, name)(to, at, cols, rows, 0)
        if one is not None:
            expected = plainly(cpu.linear, finite, one, activation=name)
            assert np.allclose(y(), expected, rtol=3e-6, atol=2e-6)
    device.cuda.copy_rows(to, at, cols, rows, 0)
    assert np.array_equal(y(), finite)


@pytest.mark.parametrize("temporal, h, w, patch, merge", [(2, 64, 96, 16, 2), (1, 28, 14, 14, 1), (2, 24, 24, 4, 3)])
def test_patchify(device, rng, temporal, h, w, patch, merge, plainly):
    frames = rng.integers(0, 256, (temporal, h, w, 3), np.uint8)
    mean, std = [0.5, 0.4, 0.3], [0.5, 0.2, 0.1]
    expected = plainly(ops.get("cpu").patchify, frames, patch, merge, mean, std)
    out, at = device.empty(expected.shape), device.array(frames)
    device.cuda.patchify(out.pointer, at.pointer, temporal, h, w, patch, merge, mean, std, 0)
    assert np.array_equal(out.numpy(), expected)


def test_probes_do_their_work(device, rng):
    """They are timed by `ivlite bench`; here they must copy and multiply what they say."""
    data, out = device.array(rng.integers(0, 256, 16 * 1000, np.uint8)), device.empty(16 * 1000, np.uint8)
    device.cuda.probe_copy(out.pointer, data.pointer, 16 * 1000, 2, 0)
    assert np.array_equal(out.numpy(), data.numpy())
    for int8 in (False, True):
        sums = device.empty(2 * 256)
        device.cuda.probe_matrix(sums.pointer, 1, 2, int8, 0)
        once = sums.numpy()
        device.cuda.probe_matrix(sums.pointer, 3, 2, int8, 0)
        assert np.array_equal(once[:256], once[256:])
        if int8:
            assert np.array_equal(sums.numpy(), 3 * once)
        assert device.cuda.probe_matrix_ops(int8) == 256 // 32 * 8 * 16 * 8 * (32 if int8 else 16) * 2


def test_no_kernel_races_or_leaves_its_memory(checked, rng):
    """Under the emulator that looks at every access."""
    x, w, b = normal(rng, 3, 300), normal(rng, 300), normal(rng, 300)
    (_x, at), w_at, b_at = padded(checked, x), checked.array(w), checked.array(b)
    y, to = outputs(checked, 3, 300)
    checked.cuda.rms_norm(to, at, w_at.pointer, 300, 3, EPS, 0)
    checked.cuda.layer_norm(to, at, w_at.pointer, b_at.pointer, 300, 3, EPS, 0)
    assert np.isfinite(y()).all()
    half, to = outputs(checked, 3, 150)
    for kernel in ("silu_mul", "gelu_tanh", "gelu_erf", "copy_rows"):
        getattr(checked.cuda, kernel)(to, at, 150, 3, 0)
        assert np.isfinite(half()).all()
    angles, turned = checked.array(normal(rng, 3, 4)), checked.empty((3, 5, 8))
    checked.cuda.rope(turned.pointer, (_x.pointer, 303, 8), angles.pointer, angles.pointer, 5, 8, True, 3, 0)
    frames, patches = checked.array(rng.integers(0, 256, (2, 8, 12, 3), np.uint8)), checked.empty((6, 3 * 2 * 16))
    checked.cuda.patchify(patches.pointer, frames.pointer, 2, 8, 12, 4, 1, [0.5] * 3, [0.5] * 3, 0)
    assert np.isfinite(turned.numpy()).all() and np.isfinite(patches.numpy()).all()
