"""The emulator itself, by small kernels (cases.cu): what it computes, and that it finds planted faults."""

import numpy as np
import pytest
from emulation import emulated

FAULTS = (
    "none", "read_outside", "read_before", "write_outside", "shared_outside", "misaligned", "race_in_block", "race_in_warp",
    "race_of_blocks", "race_past_arrival", "race_with_copy", "read_of_copy", "missed_barrier", "missed_lanes", "mixed_lanes",
    "ended_lane", "unwritten",
)  # fmt: skip


@pytest.fixture(params=["fast", "checked"])
def either(request):
    """A Device of either build."""
    from device import CheckedDevice, Device

    module = emulated(f"_emulated_{request.param}")
    made = Device(module) if request.param == "fast" else CheckedDevice(module)
    made.cases = module.cases
    yield made
    made.close()


@pytest.fixture
def checked_cases(checked):
    checked.cases = checked.module.cases
    return checked


def bf16(x):
    """float32 to bits of bf16 and back."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    bits = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("matrix", [False, True])
@pytest.mark.parametrize("product", ["bf16", "half", "int8"])
def test_mma(either, rng, product, matrix):
    if product == "int8":
        a, b = (rng.integers(-128, 128, (n, 32)).astype(np.int8) for n in (16, 8))
        wide, d = (a.astype(np.int32), b.astype(np.int32)), rng.integers(-999, 999, (16, 8)).astype(np.int32)
    else:
        a, b = (rng.standard_normal((n, 16)).astype(np.float32) for n in (16, 8))
        d = rng.standard_normal((16, 8)).astype(np.float32)
        if product == "half":
            a, b = a.astype(np.float16), b.astype(np.float16)
            wide = a.astype(np.float64), b.astype(np.float64)
        else:
            (a, wa), (b, wb) = bf16(a), bf16(b)
            wide = wa.astype(np.float64), wb.astype(np.float64)
    out = either.array(d)
    either.cases.multiply(
        ["bf16", "half", "int8"].index(product), out.pointer, either.array(a).pointer, either.array(b).pointer, matrix
    )
    np.testing.assert_allclose(out.numpy(), d + wide[0] @ wide[1].T, rtol=0, atol=0 if product == "int8" else 2e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(either, rng, transposed):
    rows = rng.integers(0, 1 << 16, (4, 8, 8)).astype(np.uint16)
    out = either.empty((32, 6), np.uint32)
    either.cases.matrices(out.pointer, either.array(rows).pointer, transposed)
    found = out.numpy()
    pairs = rows.view(np.uint32)  # (4, 8, 4)
    turned = np.ascontiguousarray(rows.transpose(0, 2, 1)).view(np.uint32)
    want = (turned if transposed else pairs).reshape(4, 32).T
    assert (found[:, :4] == want).all()
    assert (found[:, 4:] == pairs[:2].reshape(2, 32).T).all()


def test_warp_functions(either, rng):
    blocks = 5
    v = rng.standard_normal((blocks * 2, 32)).astype(np.float32)
    v[3, 7] = 3
    out = either.empty((7, blocks * 2, 32))
    either.cases.warp_functions(out.pointer, either.array(v).pointer, blocks)
    found, lanes = out.numpy(), np.arange(32)
    assert (found[0] == v[:, ::-1]).all()
    assert (found[1] == v[:, lanes ^ 5]).all()
    assert (found[2] == v[:, np.where(lanes + 3 < 32, lanes + 3, lanes)]).all()
    assert (found[3] == (v[:, 7:8] > 2.5)).all() and found[3].any() and not found[3].all()
    sums = v
    for mask in (16, 8, 4, 2, 1):
        sums = sums + sums[:, lanes ^ mask]
    assert (found[4] == sums).all()
    assert (found[5] == (v * np.float32(100)).astype(np.int32).sum(1, keepdims=True)).all()
    assert (found[6] == v.max(1, keepdims=True)).all()


def test_copies_land_when_waited_for(either, rng):
    """wait_copies<1> lands the first of two commits; in place of what is not valid come zeros."""
    source = rng.standard_normal(128).astype(np.float32)
    out = either.empty(256)
    either.cases.copies(out.pointer, either.array(source).pointer)
    valid = np.where(np.arange(128) // 4 % 2 == 0, source, 0)
    assert (out.numpy() == np.concatenate([source, valid])).all()


def test_roundings(either, rng):
    special = np.array(
        [0, -0.0, np.inf, -np.inf, 65504, 65519.996, 65520, 6e-8, 2.9e-8, 1e-40, 3e38, 1.0009765625], np.float32
    )
    x = np.concatenate([special, (rng.standard_normal(500) * 10.0 ** rng.integers(-8, 5, 500)).astype(np.float32)])
    out = either.empty((len(x), 4))
    either.cases.rounded(out.pointer, either.array(x).pointer, len(x))
    with np.errstate(over="ignore"):
        half = x.astype(np.float16).astype(np.float32)
    want = np.stack([half, -half, bf16(x)[1], bf16(-x)[1]], 1)
    assert (out.numpy().view(np.uint32) == want.view(np.uint32)).all()


def test_atomics_of_all_blocks(either):
    counter = either.array(np.zeros(1, np.int32))
    either.cases.counted(counter.pointer, 200)
    assert counter.numpy()[0] == 200 * sum(range(64))


def test_the_last_block_sees_what_the_others_wrote(either, rng):
    """And leaves the counter as it was."""
    counter = either.array(np.zeros(1, np.int32))
    for blocks in (1, 2, 150):
        x = rng.integers(-9, 9, 64 * blocks).astype(np.float32)
        out, sums = either.empty(1), either.empty(blocks)
        either.cases.gathered(out.pointer, sums.pointer, either.array(x).pointer, counter.pointer, blocks)
        assert out.numpy()[0] == x.sum() and counter.numpy()[0] == 0


@pytest.mark.parametrize("bytes_each", [4, 8, 16])
@pytest.mark.parametrize("stride", [1, 2, 4, 8, 32])
def test_bank_conflicts_and_sectors(checked_cases, bytes_each, stride):
    words = bytes_each // 4
    if stride % words:
        pytest.skip("not aligned")
    x = checked_cases.array(np.ones(32 * stride, np.float32))
    out = checked_cases.empty(32)
    with checked_cases.traffic() as found:
        checked_cases.cases.strided(out.pointer, x.pointer, bytes_each, stride)
    assert (out.numpy() == 2).all()
    (shared,) = (t for t in found if t["memory"] == "shared" and t["access"] == "read")
    (memory,) = (t for t in found if t["memory"] == "global" and t["access"] == "read")
    together = 32 // words  # lanes served at a time
    banks = [(lane * stride + w) % 32 for lane in range(together) for w in range(words)]
    ways = max(banks.count(bank) for bank in banks)
    assert (shared["requests"], shared["parts"], shared["needed"]) == (1, words * ways, words)
    assert shared["bytes"] == memory["bytes"] == bytes_each and "cases.cu" in shared["source"]
    sectors = len({lane * stride * 4 // 32 for lane in range(32)})
    assert (memory["requests"], memory["parts"], memory["needed"]) == (1, sectors, bytes_each)


def plant(device, fault):
    memory = device.array(np.arange(128, dtype=np.float32) % 127)  # the last is a counter of blocks
    device.cases.faulty(FAULTS.index(fault), memory.pointer, 128)


def test_sound_kernel(checked_cases):
    plant(checked_cases, "none")
    assert checked_cases.unwritten() == (0, "")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("read_outside", r"thread 63: reads 4 bytes \(cases.cu:\d+\), 512 bytes after the beginning of a buffer of 512 bytes"),
        ("read_before", r"thread 5: reads 4 bytes .*, 4 bytes before a buffer of 512 bytes"),
        ("write_outside", r"thread 9: writes 4 bytes .*, 512 bytes after the beginning of"),
        ("shared_outside", r"thread 0: reads 4 bytes .*, beyond the 256 of the launch"),
        ("misaligned", r"thread 0: reads 8 bytes .*, which is not aligned"),
        ("race_in_block", r"thread \d+: \w+ 4 bytes of shared memory at \d+ .*, while thread \d+ may touch them"),
        ("race_in_warp", r"thread 1: writes 4 bytes of shared memory at 4 .*, while thread 0 may touch them"),
        ("race_of_blocks", r"thread 0: \w+ 4 bytes .*, while another block of the launch"),
        ("race_past_arrival", r"thread 0: reads 4 bytes .*, while another block of the launch"),
        ("race_with_copy", r"thread 40: writes 16 bytes of shared memory at 240 .*, while thread 3 may touch them"),
        ("read_of_copy", r"thread 0: reads 4 bytes of shared memory at 0 .*, into which an asynchronous copy is under way"),
        ("missed_barrier", r"40 of 64 threads wait at a barrier of the block, 24 have ended"),
        ("missed_lanes", r"18 of 64 threads wait at a barrier of the block, 0 have ended, 46 wait for lanes of their warp"),
        ("mixed_lanes", r"lanes of its warp wait at another operation"),
        ("ended_lane", r"a shuffle takes the value of a lane that has ended"),
    ],
)  # fmt: skip
def test_planted_faults(checked_cases, fault, message):
    """Each is found, and the emulator goes on working."""
    with pytest.raises(AssertionError, match="kernel faulty_kernel, block .*" + message):
        plant(checked_cases, fault)
    plant(checked_cases, "none")


@pytest.mark.parametrize("fault", ["missed_barrier", "missed_lanes", "mixed_lanes", "ended_lane"])
def test_threads_that_never_meet_in_the_fast_build(either, fault):
    with pytest.raises(AssertionError, match="kernel faulty_kernel"):
        plant(either, fault)


def test_unwritten_shared_memory(either, checked_cases):
    """It holds NaN, and the checked build says who read it."""
    memory = either.array(np.zeros(128, np.float32))
    either.cases.faulty(FAULTS.index("unwritten"), memory.pointer, 128)
    checked_cases.unwritten()
    assert np.isnan(memory.numpy()[100])
    plant(checked_cases, "unwritten")
    reads, first = checked_cases.unwritten()
    assert reads == 64 and first.startswith("reads 4 bytes of shared memory at 256 (cases.cu:")
    assert checked_cases.unwritten() == (0, "")


@pytest.mark.parametrize(("blocks", "message"), [(0, "the grid is empty"), (-1, "the grid is too large")])
def test_launches_that_a_card_refuses(either, blocks, message):
    counter = either.array(np.zeros(1, np.int32))
    with pytest.raises(AssertionError, match=f"kernel counted_kernel: {message}"):
        either.cases.counted(counter.pointer, blocks)


def test_limit_of_shared_memory(checked_cases):
    x, out = checked_cases.array(np.ones(1024, np.float32)), checked_cases.empty(32)
    checked_cases.emulator.set_shared_limit(4095)
    try:
        with pytest.raises(AssertionError, match="may not have so much shared memory"):
            checked_cases.cases.strided(out.pointer, x.pointer, 4, 32)
    finally:
        checked_cases.emulator.set_shared_limit(99 << 10)
