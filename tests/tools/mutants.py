"""Mutation testing of src/ivlite: small faults, one at a time, each of which some test should notice.

    python tests/tools/mutants.py --count 200 --seed 1           # about half an hour on two idle cores
    python tests/tools/mutants.py --only src/ivlite/media        # files whose path begins so
    python tests/tools/mutants.py --list 30 --seed 2             # show, run nothing

First every test file runs once under coverage, which records the tests that execute each line (kernel tests are left out: they
execute no Python worth a fault). Then each mutant runs in a copy of the tree: the tests of its line, fastest first, until
one fails, and after them their neighbours. A mutant that every test survives is printed as a diff. The seed decides which
mutants are drawn.

What is known is kept in the folder --keep, and a run that was stopped goes on from there. Test files that changed are recorded
again; where sources changed, their lines are followed. A mutant that was caught is not run again; one that survived is, once a
test file has changed.

Needs coverage >= 7.10 and pytest. The package must be built in place (an editable install).
"""

import argparse
import ast
import compileall
import faulthandler
import hashlib
import json
import math
import multiprocessing
import os
import py_compile
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from difflib import SequenceMatcher
from itertools import accumulate
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[2]
# Tests that take long and see no line of Python worth a fault; of those of kernels, one compares with Python.
IGNORED = tuple(f"tests/{name}" for name in (
    "kernels/", "tools/", "fuzz/", "threads/", "cuda/", "cli/test_interrupts.py", "test_headers.py", "test_isa_objects.py", "test_typing.py",
))  # fmt: skip
TABLES = ("tests/test_tables.py", "tests/test_defaults_limits.py", "tests/test_small_limits.py")  # look at all modules
SEEN = ("tests/kernels/test_cache.py",)
PRELOADED = [
    "numpy",
    "av",
    "PIL.Image",
    "prompt_toolkit",
    "tokenizers",
    "llguidance",
    "pysubs2",
    "gguf",
    "pytest",
    "_pytest.python",
    "coverage",
]
FORKS = multiprocessing.get_context("forkserver")
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

    def walk(node, statement, inside, span=None):
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
                lines = span or [min(statement.lineno, node.lineno), node.end_lineno]
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
                whole = [node.lineno, node.end_lineno] if isinstance(child, ast.arguments) else span
                yield from walk(child, statement, inside, whole)  # a default matters wherever the function runs

    return list(walk(ast.parse(source), None, False))


def mutated(source, mutant):
    return source[: mutant["begin"]] + mutant["text"].encode() + source[mutant["end"] :]


# ------------------------------------------------------------------------------------------------ copies of the tree


def make_tree(folder, covered):
    """A copy of the working tree as git knows it, and of the compiled module, with bytecode that follows each source's hash."""
    command = ["git", "ls-files", "-coz", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    names = [Path(os.fsdecode(name)) for name in listed.stdout.split(b"\0")[:-1]]
    for name in [*names, *(f.relative_to(ROOT) for f in ROOT.glob("src/ivlite/*.so"))]:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    if covered:
        # processes that tests start import this first; the file that coverage installs for that may not be in reach
        (folder / "src" / "sitecustomize.py").write_text("import coverage\ncoverage.process_startup()\n")
        (folder / "coveragerc").write_text(
            f"[run]\nsource = {folder}/src/ivlite\ndata_file = {folder}/cover\nparallel = true\npatch = subprocess\n"
            "concurrency = thread\n"
        )
    compileall.compile_dir(folder, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    return folder


def child(folder, args, more):
    """Runs pytest in a tree, in a process of its own that has imported what all tests import."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    paths = [str(folder), f"{folder}/src", f"{folder}/tests/tools"]
    sys.path[:] = paths + [path for path in sys.path if path not in (str(ROOT / "src"), str(ROOT / "tests" / "tools"))]
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": ":".join(paths[1:]), "PYTHONDONTWRITEBYTECODE": "1"} | more
    import pytest

    code = pytest.main(["-q", "-p", "mutants", "-p", "no:cacheprovider", *args])
    sys.stdout.flush()
    os._exit(code)


def run_tests(folder, *args, timeout=None, **more):
    """(exit code, output) of pytest in a tree. A run that takes longer than `timeout` seconds gives code 1."""
    process = FORKS.Process(target=child, args=(folder, args, more))
    process.start()
    process.join(timeout)
    if late := process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return (1, "timeout") if late else (process.exitcode, (folder / "log").read_text(errors="replace"))


def over(items, jobs, folder, work, covered=False):
    """Yields (item, work(item, tree)) as they are done, in `jobs` trees of their own."""
    trees = SimpleQueue()
    for i in range(jobs):
        trees.put(make_tree(folder / f"{'covered' if covered else 'tree'}{i}", covered))

    def run(item):
        tree = trees.get()
        try:
            return item, work(item, tree)
        finally:
            trees.put(tree)

    with ThreadPoolExecutor(jobs) as threads:
        for done in as_completed([threads.submit(run, item) for item in items]):
            yield done.result()


# ------------------------------------------------------------------------------------------------ which tests run a line


def digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


def test_files():
    files = {str(f.relative_to(ROOT)): digest(f.read_bytes()) for f in sorted(ROOT.glob("tests/**/test_*.py"))}
    return {name: found for name, found in files.items() if name in SEEN or not name.startswith(IGNORED)}


def recorded(path, jobs, folder):
    """{"tests": {file: digest}, "seconds": {test: s}, "lines": {file: {line: [test, ...]}}}, brought up to date in `path`."""
    known = loaded(path) if path.exists() else {"tests": {}, "seconds": {}, "lines": {}, "sources": {}}
    known["lines"] = {name: moved(known, name) for name in known["lines"] if (ROOT / name).exists()}
    known["sources"] = {str(f.relative_to(ROOT)): f.read_text() for f in sorted(ROOT.glob("src/ivlite/**/*.py"))}
    files = test_files()
    changed = {name for name in files.keys() | known["tests"].keys() if files.get(name) != known["tests"].get(name)}
    forget(known, changed)
    for name, (seconds, lines) in over(sorted(changed & files.keys()), jobs, folder, record, covered=True):
        known["tests"][name] = files[name]
        known["seconds"] |= seconds
        for file, tests in lines.items():
            mine = known["lines"].setdefault(file, {})
            for line, found in tests.items():
                mine.setdefault(line, []).extend(found)
        print(f"{name}: {len(seconds)} tests, {sum(seconds.values()):.0f} s", flush=True)
        save(known, path)
    return known


def save(known, path):
    """Writes what is known; tests of lines are numbers, since there are millions of them."""
    numbers = {test: n for n, test in enumerate(known["seconds"])}
    lines = {
        file: {line: [numbers[t] for t in tests] for line, tests in lines.items()}
        for file, lines in known["lines"].items()
    }
    path.with_suffix(".new").write_text(json.dumps(known | {"lines": lines}))
    path.with_suffix(".new").replace(path)


def loaded(path):
    known = json.loads(path.read_text())
    names = list(known["seconds"])
    for file, lines in known["lines"].items():
        known["lines"][file] = {line: [names[n] for n in tests] for line, tests in lines.items()}
    return known


def moved(known, name):
    """The tests of each line of a source, which may have changed since: new lines get those of the line before."""
    before, now = known["sources"][name].splitlines(), (ROOT / name).read_text().splitlines()
    old, lines, last = known["lines"][name], {}, 0
    if before == now:
        return old
    same = SequenceMatcher(None, before, now, False).get_matching_blocks()
    places = {b + i: a + i for a, b, size in same for i in range(size)}
    for line in range(len(now)):
        last = places.get(line, last)
        if found := old.get(str(last + 1)):
            lines[str(line + 1)] = found
    return lines


def forget(known, files):
    """Drops what is known of tests whose files changed."""
    gone = {test for test in known["seconds"] if test.split("::")[0] in files}
    known["tests"] = {name: found for name, found in known["tests"].items() if name not in files}
    known["seconds"] = {test: s for test, s in known["seconds"].items() if test not in gone}
    for file, lines in known["lines"].items():
        known["lines"][file] = {line: [t for t in tests if t not in gone] for line, tests in lines.items()}


def record(name, folder):
    """({test: seconds}, {file: {line: [test, ...]}}) of a test file, run in a tree under coverage."""
    rc, timed = folder / "coveragerc", folder / "seconds"
    for left in [timed, *folder.glob("cover*")]:
        left.unlink() if left.is_file() and left != rc else None
    code, output = run_tests(folder, name, "--tb=line", MUTANTS_COVER=str(rc), MUTANTS_SECONDS=str(timed))
    if code not in (0, 1, 5):
        raise SystemExit(f"{name} does not run: exit code {code}\n{output[-2000:]}")
    if code == 1:
        print(f"{name}: tests that fail are not counted\n{output[-1000:]}", flush=True)
    seconds = json.loads(timed.read_text())
    import coverage

    cover, lines = coverage.Coverage(config_file=str(rc)), {}
    if not list(folder.glob("cover.*")):
        return seconds, lines
    cover.combine([str(folder)])
    data = cover.get_data()
    for file in data.measured_files():
        # a context is "static|dynamic"; a test's own process has the dynamic part, its children the static one
        lines[str(Path(file).relative_to(folder))] = {
            str(line): sorted({c.strip("|").split("|")[0] for c in contexts} & seconds.keys())
            for line, contexts in data.contexts_by_lineno(file).items()
        }
    return seconds, lines


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


def tests_of(mutant, known, most):
    """(tests that execute the mutant's lines, others of the same files that execute its file), fastest first.

    Of each, those that took `most` seconds together when they were recorded.

    The others are there for what a fixture executes that several tests share: it counts for the first of them.
    """
    lines = known["lines"].get(mutant["file"], {})
    everything = {test for tests in lines.values() for test in tests if test}
    first, last = mutant["lines"]
    direct = {t for line in range(first, last + 1) for t in lines.get(str(line), lines.get(line, ())) if t}
    if not mutant["inside"]:  # also the tests that run no function of the package: they may look at its tables
        seen = {test for file in known["lines"].values() for tests in file.values() for test in tests}
        direct = everything | (set(known["seconds"]) - seen) | {t for t in known["seconds"] if t.startswith(TABLES)}
    files = {test.split("::")[0] for test in direct}
    beside = {test for test in everything - direct if test.split("::")[0] in files}

    def speed(test):
        return known["seconds"].get(test, 0)

    def affordable(tests):
        tests = sorted(tests, key=lambda test: (mutant["inside"] or not test.startswith(TABLES), speed(test)))
        total = accumulate(map(speed, tests))
        return [test for test, spent in zip(tests, total, strict=True) if spent <= most]

    return affordable(direct), affordable(beside)


def survives(mutant, folder, known, most):
    """Runs the tests; None if all pass, else the one that failed (or what ended the run)."""
    target = folder / mutant["file"]
    source = target.read_bytes()
    target.write_bytes(mutated(source, mutant))
    try:
        for tests in tests_of(mutant, known, most):
            if not tests:
                continue
            wanted = folder / "wanted.json"
            wanted.write_text(json.dumps({test: known["seconds"].get(test, 0) for test in tests}))
            files = sorted({t.split("::")[0] for t in tests})
            limit = 120 + 10 * sum(known["seconds"].get(t, 0) for t in tests)
            code, output = run_tests(folder, "-x", "--tb=no", *files, timeout=limit, MUTANTS_TESTS=str(wanted))
            if code not in (0, 5):  # 5: a test of that name is there no more, or is skipped when it is collected
                failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
                return failed[0] if failed else output.strip()[-120:] or f"exit code {code}"
        return None
    finally:
        target.write_bytes(source)


def line_of(mutant):
    return (ROOT / mutant["file"]).read_bytes()[: mutant["begin"]].count(b"\n") + 1


def shown(mutant):
    """A mutant as the lines before and after."""
    source, number = (ROOT / mutant["file"]).read_bytes(), line_of(mutant)
    before = source.splitlines()[number - 1].decode().strip()
    after = mutated(source, mutant).splitlines()[number - 1].decode().strip()
    return f"{mutant['file']}:{number} {mutant['kind']}\n    - {before}\n    + {after}"


def name_of(mutant):
    source = (ROOT / mutant["file"]).read_bytes()
    return f"{mutant['file']} {digest(source)} {mutant['begin']}-{mutant['end']} {mutant['text']}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="src/ivlite", help="files whose path begins so")
    parser.add_argument("--list", type=int, metavar="N", help="show N mutants and run nothing")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="of tests for a mutant, and as many for their neighbours"
    )
    parser.add_argument("--keep", type=Path, default=ROOT / "build" / "mutants", help="folder for what is known")
    args = parser.parse_args()
    files = [f for f in sorted(ROOT.glob("src/ivlite/**/*.py")) if str(f.relative_to(ROOT)).startswith(args.only)]
    pool = [m for f in files for m in mutants_of(f)]
    drawn = random.Random(args.seed).sample(pool, min(args.list or args.count, len(pool)))
    if args.list:
        return print("\n".join(map(shown, drawn)))
    args.keep.mkdir(parents=True, exist_ok=True)
    FORKS.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as name:
        run_all(drawn, args, Path(name))
    print(f"{len(pool)} mutants are possible; seed {args.seed}")


def run_all(drawn, args, folder):
    known = recorded(args.keep / "map.json", args.jobs, folder)
    path, tests = args.keep / "results.json", digest(json.dumps(known["tests"], sort_keys=True).encode())
    # {mutant: [what caught it, the tests that were there]}
    results = json.loads(path.read_text()) if path.exists() else {}
    names = [name_of(mutant) for mutant in drawn]
    left = [m for m, name in zip(drawn, names, strict=True) if name not in results]
    left += [m for m, name in zip(drawn, names, strict=True)
             if name in results and results[name][0] is None and results[name][1] != tests]  # fmt: skip
    print(f"{len(drawn) - len(left)} of {len(drawn)} are known", flush=True)
    runs = over(left, args.jobs, folder, lambda mutant, tree: survives(mutant, tree, known, args.seconds))
    for number, (mutant, failed) in enumerate(runs, 1):
        results[name_of(mutant)] = failed, tests
        path.write_text(json.dumps(results, indent=1))
        verdict = f"{mutant['file']}:{line_of(mutant)} caught {failed[:110]}" if failed else "SURVIVED " + shown(mutant)
        print(f"[{number}/{len(left)}] {verdict}", flush=True)
    survivors = [mutant for mutant, name in zip(drawn, names, strict=True) if results[name][0] is None]
    print("\nSurvivors:", *map(shown, survivors), sep="\n")
    print(f"{len(drawn) - len(survivors)} of {len(drawn)} caught ({1 - len(survivors) / len(drawn):.1%})")


if __name__ == "__main__":
    main()
