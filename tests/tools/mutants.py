"""Mutation testing of src/ivlite: small faults, one at a time, each of which some test should notice.

    python tests/tools/mutants.py --count 200 --seed 1           # about half an hour on two idle cores
    python tests/tools/mutants.py --only src/ivlite/media        # files whose path begins so
    python tests/tools/mutants.py --list 30 --seed 2             # show, run nothing

First the suite runs once under coverage, which records the tests that execute each line (kernel tests are left out: they
execute no Python worth a fault). Then each mutant runs in a copy of the tree: the tests of its line, fastest first, until
one fails, and after them their neighbours. A mutant that every test survives is printed as a diff. The seed decides which
mutants are drawn; a map from an earlier run is kept in --map and used again while no file has changed.

Needs coverage >= 7.10 and pytest. The package must be built in place (an editable install).
"""

import argparse
import ast
import faulthandler
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[2]
IGNORED = (
    "kernels",
    "tools",
    "fuzz",
    "threads",
    "cli/test_interrupts.py",
)  # of tests/: they take long and see no line of Python
MEMORY = 12 << 30  # bytes of data that a mutant may allocate
COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ making mutants


def changes(node):
    """Yields (kind, text) for every fault of one expression; `text` replaces its source."""

    def edited(**fields):
        return ast.unparse(type(node)(**{f: getattr(node, f) for f in node._fields} | fields))

    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            yield "comparison", f"({edited(ops=[*node.ops[:i], COMPARE[type(op)](), *node.ops[i + 1 :]])})"
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield "arithmetic", f"({edited(op=ARITHMETIC[type(node.op)]())})"
    elif isinstance(node, ast.BoolOp):
        yield "boolean", f"({edited(op=ast.Or() if isinstance(node.op, ast.And) else ast.And())})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "boolean", f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", repr(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield "constant", repr(node.value + 1 if isinstance(node.value, int) else node.value * 1.5 + 1e-3)


def mutants_of(path):
    """Every mutant of a file: dicts with the byte range to replace, its lines, and the text that goes there."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def walk(node, statement, inside):
        if isinstance(node, ast.JoinedStr | ast.MatchValue):  # positions inside f-strings are not the file's in 3.11
            return
        if isinstance(node, ast.AnnAssign):  # not its annotation
            yield from walk(node.value, node, inside) if node.value else ()
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        statement = node if isinstance(node, ast.stmt) else statement
        inside = inside or isinstance(node, ast.FunctionDef | ast.Lambda)
        if isinstance(node, ast.expr):
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            for kind, text in changes(node):
                lines = [min(statement.lineno, node.lineno), node.end_lineno]
                yield dict(
                    file=str(path.relative_to(ROOT)),
                    kind=kind,
                    begin=begin,
                    end=end,
                    text=text,
                    lines=lines,
                    inside=inside,
                )
        for child in ast.iter_child_nodes(node):
            if not (
                isinstance(node, ast.FunctionDef | ast.arg)
                and child in (getattr(node, "returns", 0), getattr(node, "annotation", 0))
            ):
                yield from walk(child, statement, inside)

    return list(walk(ast.parse(source), None, False))


def mutated(source, mutant):
    return source[: mutant["begin"]] + mutant["text"].encode() + source[mutant["end"] :]


# ------------------------------------------------------------------------------------------------ which tests run a line


def copy_tree(folder):
    """A copy of the working tree as git knows it, and of the compiled module."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in [
        *listed.stdout.decode().split("\0")[:-1],
        *(f.relative_to(ROOT) for f in ROOT.glob("src/ivlite/*.so")),
    ]:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def environment(folder, **more):
    return (
        os.environ | {"PYTHONPATH": f"{folder / 'src'}:{folder / 'tests/tools'}", "PYTHONDONTWRITEBYTECODE": "1"} | more
    )


def pytest(folder, *args, timeout=None, **more):
    """Runs pytest in a tree; returns (exit code, output). A run that takes longer than `timeout` gives code 1."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "mutants", "-p", "no:cacheprovider", *args]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(folder, **more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY)),
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return 1, "timeout"


def recorded(path):
    """{"lines": {file: {line: [test, ...]}}, "seconds": {test: s}} of a run of the suite, from `path` if nothing changed."""
    digest = hashlib.sha256()
    for file in sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py")]):
        digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    if path.exists() and (known := json.loads(path.read_text()))["digest"] == digest.hexdigest():
        return known
    with tempfile.TemporaryDirectory() as name:
        folder = copy_tree(Path(name))
        # The processes that tests start import this first; the file that coverage installs for that may not be in reach.
        (folder / "src" / "sitecustomize.py").write_text("import coverage\ncoverage.process_startup()\n")
        rc = folder / "coveragerc"
        rc.write_text(f"[run]\nsource = {folder}/src/ivlite\ndata_file = {folder}/cover\nparallel = true\npatch = subprocess\n"
                      "concurrency = thread\n")  # fmt: skip
        ignored = [f"--ignore=tests/{part}" for part in IGNORED]
        start = time.perf_counter()
        code, output = pytest(folder, *ignored, "tests", MUTANTS_COVER=str(rc), MUTANTS_SECONDS=str(folder / "seconds"))
        print(output[-1500:])
        if code not in (0, 1):
            raise SystemExit("the suite does not run")
        print(f"recorded in {time.perf_counter() - start:.0f} s", flush=True)
        seconds = json.loads((folder / "seconds").read_text())
        known = {"digest": digest.hexdigest(), "lines": read_lines(folder, rc, seconds), "seconds": seconds}
    path.write_text(json.dumps(known))
    return known


def read_lines(folder, rc, tests):
    """{file: {line: [test, ...]}} of the coverage data in a folder, with those of `tests`."""
    import coverage

    cover = coverage.Coverage(config_file=str(rc))
    cover.combine([str(folder)])
    data, lines = cover.get_data(), {}
    for file in data.measured_files():
        name = str(Path(file).relative_to(folder))
        # a context is "static|dynamic"; a test's own process has the dynamic part, its children the static one
        lines[name] = {line: sorted({c.strip("|").split("|")[0] for c in contexts} & tests.keys())
                       for line, contexts in data.contexts_by_lineno(file).items()}  # fmt: skip
    return lines


# ------------------------------------------------------------------------------------------------ the plugin for pytest


def pytest_configure(config):
    """Starts coverage where a run is recorded."""
    if rc := os.environ.get("MUTANTS_COVER"):
        import coverage

        config.mutants_cover = coverage.Coverage(config_file=rc)
        config.mutants_cover.start()


def pytest_collection_modifyitems(config, items):
    """Keeps the tests that a mutant needs, in their order."""
    if wanted := os.environ.get("MUTANTS_TESTS"):
        LIMITS.update(json.loads(Path(wanted).read_text()))
        order = {test: i for i, test in enumerate(LIMITS)}
        items[:] = sorted((i for i in items if i.nodeid in order), key=lambda i: order[i.nodeid])


def pytest_runtest_logstart(nodeid, location):
    """From here on lines are executed by this test, which ends the run if it takes ten times as long as it did."""
    if nodeid in LIMITS:
        faulthandler.dump_traceback_later(20 + 10 * LIMITS[nodeid], exit=True)
    if cover := sys.modules.get("coverage") and sys.modules["coverage"].Coverage.current():
        cover.switch_context(nodeid)
        cover.config.context = nodeid  # of the processes that the test starts, which take their settings from there
        os.environ["COVERAGE_PROCESS_CONFIG"] = cover.config.serialize()


FAILED = set()
SECONDS, LIMITS = {}, {}  # of each test: how long it took, and had taken when the map was made


def pytest_runtest_logreport(report):
    SECONDS[report.nodeid] = SECONDS.get(report.nodeid, 0) + report.duration
    if report.failed:  # without any mutant: it tells nothing about one
        FAILED.add(report.nodeid)


def pytest_unconfigure(config):
    if cover := getattr(config, "mutants_cover", None):
        cover.stop()
        cover.save()
        Path(os.environ["MUTANTS_SECONDS"]).write_text(
            json.dumps({t: s for t, s in SECONDS.items() if t not in FAILED})
        )


# ------------------------------------------------------------------------------------------------ running mutants


def tests_of(mutant, known):
    """(tests that execute the mutant's lines, others of the same files that execute its file), fastest first.

    The others are there for what a fixture executes that several tests share: it counts for the first of them.
    """
    lines = known["lines"].get(mutant["file"], {})
    everything = {test for tests in lines.values() for test in tests if test}
    first, last = mutant["lines"]
    direct = {t for line in range(first, last + 1) for t in lines.get(str(line), lines.get(line, ())) if t}
    if not mutant["inside"]:  # also the tests that run no function of the package: they may look at its tables
        seen = {test for file in known["lines"].values() for tests in file.values() for test in tests}
        direct = everything | (set(known["seconds"]) - seen)
    files = {test.split("::")[0] for test in direct}
    beside = {test for test in everything - direct if test.split("::")[0] in files}

    def speed(test):
        return known["seconds"].get(test, 0)

    return sorted(direct, key=speed), sorted(beside, key=speed)


def survives(mutant, folder, known):
    """Runs the tests; None if all pass, else the one that failed (or what ended the run)."""
    target = folder / mutant["file"]
    source = target.read_bytes()
    target.write_bytes(mutated(source, mutant))
    try:
        for tests in tests_of(mutant, known):
            if not tests:
                continue
            wanted = folder / "wanted.json"
            wanted.write_text(json.dumps({test: known["seconds"].get(test, 0) for test in tests}))
            files = sorted({t.split("::")[0] for t in tests})
            limit = 120 + 10 * sum(known["seconds"].get(t, 0) for t in tests)
            code, output = pytest(folder, "-x", "--tb=no", *files, timeout=limit, MUTANTS_TESTS=str(wanted))
            if code:
                failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
                return failed[0] if failed else output.strip()[-120:] or f"exit code {code}"
        return None
    finally:
        target.write_bytes(source)


def shown(mutant):
    """A mutant as the lines before and after."""
    source = (ROOT / mutant["file"]).read_bytes()
    number = source[: mutant["begin"]].count(b"\n")
    before = source.splitlines()[number].decode().strip()
    after = mutated(source, mutant).splitlines()[number].decode().strip()
    return f"{mutant['file']}:{number + 1} {mutant['kind']}\n    - {before}\n    + {after}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="src/ivlite", help="files whose path begins so")
    parser.add_argument("--list", type=int, metavar="N", help="show N mutants and run nothing")
    parser.add_argument(
        "--map", type=Path, default=ROOT / "build" / "mutants.json", help="where the tests of each line are kept"
    )
    args = parser.parse_args()
    files = [f for f in sorted(ROOT.glob("src/ivlite/**/*.py")) if str(f.relative_to(ROOT)).startswith(args.only)]
    pool = [m for f in files for m in mutants_of(f)]
    drawn = random.Random(args.seed).sample(pool, min(args.list or args.count, len(pool)))
    if args.list:
        return print("\n".join(map(shown, drawn)))
    args.map.parent.mkdir(exist_ok=True)
    known, caught = recorded(args.map), 0
    with tempfile.TemporaryDirectory() as name:
        trees = SimpleQueue()
        for i in range(args.jobs):
            trees.put(copy_tree(Path(name) / str(i)))

        def run(mutant):
            folder = trees.get()
            try:
                return mutant, survives(mutant, folder, known)
            finally:
                trees.put(folder)

        with ThreadPoolExecutor(args.jobs) as threads:
            for number, done in enumerate(as_completed([threads.submit(run, mutant) for mutant in drawn]), 1):
                mutant, failed = done.result()
                caught += failed is not None
                verdict = f"caught {failed[:110]}" if failed else "SURVIVED, " + shown(mutant)
                print(
                    f"[{number}/{len(drawn)}, {caught} caught] {mutant['file']}:{mutant['lines'][0]} {verdict}",
                    flush=True,
                )
    print(
        f"{caught} of {len(drawn)} mutants caught ({100 * caught / len(drawn):.0f} %), {len(pool)} possible, seed {args.seed}"
    )


if __name__ == "__main__":
    main()
