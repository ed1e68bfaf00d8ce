"""The layers of docs/DESIGN.md, read from the sources: who imports whom, who includes what."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "ivlite"
PYTHON = sorted(PACKAGE.rglob("*.py"))
CXX = sorted(
    [*ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/**/*.cpp"), *ROOT.glob("csrc/**/*.cu*"), *ROOT.glob("bindings/*")]
)
CUDA = [path for path in CXX if path.parent.name == "cuda"]  # not in device/, which nvcc alone sees

# Rooms and modules of ivlite by layer, low to high; a module may import lower layers, and its own room.
LAYERS = (
    {"errors", "_version", "_C"},
    {"numbers"},
    {"stop"},
    {"machine", "files", "interrupt", "workers", "stages"},
    {"output", "ops"},
    {"media"},
    {"gguf"},
    {"prompt"},
    {"models"},
    {"engine"},
    {"plan", "session", "library"},
    {"model", "quantize"},
    {"loading"},
    {"evaluate", "agent", "adapters"},
    {"serve", "batch"},
    {"cli"},
    {"__init__", "__main__"},
)
# Packages that only one place may import.
OWNERS = {
    "av": ("media/",),
    "PIL": ("media/", "cli/chart.py"),
    "pillow_heif": ("media/stills.py",),
    "tokenizers": ("gguf/tokenizer.py",),
    "torch": ("ops/reference.py", "ops/cuda_memory.py"),
    "prompt_toolkit": ("cli/chat/",),
    "llguidance": ("engine/grammar.py",),
    "pysubs2": ("media/subtitle_files.py",),
    "pywhispercpp": ("media/speech.py",),
    "starlette": ("serve/", "cli/serve.py"),
    "mcp": ("agent/servers.py", "serve/mcp", "cli/mcp.py"),
    "mcp_types": ("serve/mcp",),
    "uvicorn": ("serve/listen.py", "cli/serve.py"),
    "anyio": ("serve/",),
    "lmms_eval": ("adapters/",),
    "loguru": ("adapters/",),
    "ray": ("batch/cluster.py",),
    "transformers": (),
    "ivlite._C": ("ops/", "media/", "quantize/", "cli/"),
}
EXTRA = {("stop.py", "ivlite._C"), ("evaluate/synthetic.py", "ivlite._C")}  # the flag that kernels look at; encoders
COMMANDS = {"quantize/cli.py", "quantize/__main__.py"}  # the command of the quantizer belongs to the command line

# The families of processor kernels, and the other families whose files each may include.
FAMILIES = {
    "vec": (),
    "elementwise": (),
    "linear": (),
    "attention": ("elementwise", "linear"),
    "latent": ("elementwise", "linear", "attention"),
}


def name(path):
    return path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).as_posix()


def imports(path):
    """Full names of the modules a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if node.module == "ivlite" else node.module


def layer_of(module):
    for i, names in enumerate(LAYERS):
        if module in names:
            return i
    raise AssertionError(f"{module} is in no layer: add it to docs/DESIGN.md and here")


def part_of(path):
    """The first component of a file's name in the package: "media", "model", "cli", ..."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_imports_go_down(path):
    mine = "cli" if name(path) in COMMANDS else part_of(path)
    for module in imports(path):
        for package, owners in OWNERS.items():
            if (module == package or module.startswith(package + ".")) and (name(path), package) not in EXTRA:
                assert name(path).startswith(owners) if owners else False, f"{name(path)} imports {package}"
        if not module.startswith("ivlite.") or module == "ivlite._C":
            continue
        other = module.split(".")[1]
        if other != mine:
            assert layer_of(other) < layer_of(mine) or mine in ("__init__", "__main__"), (
                f"{name(path)} imports {module}"
            )


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_only_declared_packages(path):
    allowed = {
        "numpy",
        "av",
        "PIL",
        "pillow_heif",
        "tokenizers",
        "torch",
        "prompt_toolkit",
        "llguidance",
        "pysubs2",
        "pywhispercpp",
        "starlette",
        "mcp",
        "mcp_types",
        "uvicorn",
        "anyio",
        "lmms_eval",
        "loguru",
        "ray",
        "ivlite",
    } | sys.stdlib_module_names
    assert {module.split(".")[0] for module in imports(path)} <= allowed


def includes(path):
    return re.findall(r'#include [<"]([^>"]+)[>"]', path.read_text())


@pytest.mark.parametrize("path", CXX, ids=name)
def test_includes_go_down(path):
    where, found = name(path), includes(path)
    if where.startswith("csrc/"):
        assert not any("pybind11" in i or "Python.h" in i for i in found), f"{where} knows of Python"
    if where.startswith("csrc/kernels/cpu/"):
        system = {
            "stdint.h",
            "string.h",
            "math.h",
            "immintrin.h",
            "arm_neon.h",
        }
        for include in found:
            known = include.startswith(("kernels/cpu/", "formats/", "simde/")) or include in system | {
                "kernels/table.h",
                "kernels/quant_scale.h",
                "kernels/q4.h",
            }
            assert known, f"{where} includes {include}"
        family = where.split("/")[3] if where.count("/") == 4 else None
        for include in found if family else ():
            if include.startswith("kernels/cpu/"):
                other = include.split("/")[2]
                assert other in (family, "vec", *FAMILIES[family]), f"{where} includes {include}"
    below = {"csrc/formats": (), "csrc/core": ("ops/", "kernels/"), "csrc/kernels": ("ops/", "core/"), "csrc/ops": ()}
    for folder, forbidden in below.items():
        if where.startswith(folder + "/"):
            assert not any(i.startswith(forbidden) for i in found if forbidden), f"{where} looks up"


@pytest.mark.parametrize("path", CUDA, ids=name)
def test_kernels_use_the_vocabulary(path):
    """They compile for the host as well: what is CUDA's alone is in device/intrinsics.h."""
    assert not any(i.startswith(("cuda_", "cuda.h", "device/", "kernels/cuda/device")) for i in includes(path))
    found = re.search(
        r"<<<|\basm\b|\b(?:threadIdx|blockIdx|blockDim|gridDim)\b|__(?:shared|global|syncthreads|shfl\w*)__?\b",
        path.read_text(),
    )
    assert not found, f"{name(path)} writes {found[0]}"


@pytest.mark.parametrize("path", PYTHON + CXX, ids=name)
def test_files_stay_readable(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 500, f"{len(lines)} lines"
    assert max(map(len, lines), default=0) <= 150


def test_no_test_imports_a_conftest():
    """Every folder has one of that name: which of them it is depends on what was collected before."""
    for path in Path(__file__).parent.rglob("*.py"):
        assert not re.search(r"^\s*(from|import) conftest\b", path.read_text(), re.M), path
