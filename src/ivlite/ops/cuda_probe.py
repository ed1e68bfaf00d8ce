"""What a card can do at most, and where the time of a step goes: for `ivlite bench`."""

COPIED = 512 << 20  # bytes of a copy, on a card with that much free: more than a cache holds
BLOCKS, STEPS = 8, 4096  # per multiprocessor, of the copy; of matrix products in registers
KERNELS = {"absorbed_attention": 2, "sample_greedy": 2}  # of launchers in a step that start several
QUEUED = 0.02  # seconds of copies before a step whose kernels are timed: meanwhile all of its launches are in the queue


def copy(ops):
    """Bytes per second, read and written, of a copy in the card's memory."""
    memory = ops.memory
    size = min(COPIED, memory.free()[0] // 8 // 16 * 16)
    run = _copying(ops, memory.empty(size, "uint8"), memory.empty(size, "uint8"))
    run()
    return 2 * size / min(memory.seconds(run) for _ in range(3))


def _copying(ops, to, source):
    blocks = BLOCKS * ops.memory.multiprocessors
    return lambda: ops.launch("probe_copy", ops.memory.pointer(to), ops.memory.pointer(source), len(to), blocks)


def matrix(ops):
    """(int8, bf16) operations per second of mma.sync with operands in registers, the matrix units' instruction of sm_80."""
    memory, blocks = ops.memory, 4 * ops.memory.multiprocessors
    out, rates = memory.empty(256 * blocks), []
    for int8 in (True, False):

        def run(int8=int8):
            ops.launch("probe_matrix", memory.pointer(out), STEPS, blocks, int8)

        run()
        seconds = min(memory.seconds(run) for _ in range(3))
        rates.append(STEPS * blocks * memory.kernels.probe_matrix_ops(int8) / seconds)
    return tuple(rates)


def kernels(ops, step):
    """{kernel: [launches, seconds of the card]} of step(), which launches and waits for nothing.

    A kernel's time is that between two events around it, which take about a microsecond, while the queue is full.
    """
    memory, names = ops.memory, []
    size = min(COPIED, memory.free()[0] // 8 // 16 * 16)
    busy = _copying(ops, memory.empty(size, "uint8"), memory.empty(size, "uint8"))
    often = max(1, min(64, round(QUEUED / max(1e-6, memory.seconds(busy)))))
    lap, seconds = memory.stopwatch()
    plain = memory.launch

    def launch(kernel, *args):
        plain(kernel, *args)
        names.append(kernel)
        lap()

    for _ in range(often):
        busy()
    lap()
    memory.launch = launch
    try:
        step()
    finally:
        del memory.launch
    found = {}
    for name, took in zip(names, seconds(), strict=True):
        of = found.setdefault(name, [0, 0.0])
        of[0], of[1] = of[0] + KERNELS.get(name, 1), of[1] + took
    return found


def step_facts(ops, step, cache):
    """Plain data about a recorded step of decoding (`cuda_step.Step`): launches, seconds on the card, and gaps between kernels.

    seconds: of the replay. gap_seconds: those less the sum of the kernels' own times, as far as that can be told.
    """
    parts = kernels(ops, lambda: step.compute_once(cache))
    seconds = min(ops.memory.seconds(step.replay) for _ in range(5))
    busy = sum(took for _, took in parts.values())
    return {
        "launches": sum(count for count, _ in parts.values()), "seconds": seconds, "gap_seconds": max(0.0, seconds - busy),
        "parts": {name: {"launches": count, "seconds": took} for name, (count, took) in sorted(parts.items())},
    }  # fmt: skip
