"""splitrank._quick_reduce_gpu for HIP: built as on a ROCm machine but with Debian's headers and runtime, and imported.

Through the CMake route that a ROCm machine takes, with a plain clang as the HIP compiler and rocm_stub/ for a ROCm. The
kernels are real: machine code of gfx942 in the module, registered with the runtime when it is imported. There is no
AMD GPU to run them. The module has a few of them, one number of ranks and one codec for each dtype, since all take a
minute and a half of the compiler's time; test_amd_isa.py compiles others for the other machines, and ``--full`` all.
"""

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.csrc.programs import PROOF, Patch, patched
from tests.csrc.test_amd_isa import ALL_KINDS, KINDS, MAILBOX, Kind, check, check_report, kernel_names, kind_arguments
from tests.support.limits import PROGRAM_S, PROOF_S, scaled

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
STUB = Path(__file__).parent / "rocm_stub"
HEADER = Path("/usr/include/hip/hip_runtime_api.h")
PACKAGES = "clang-22 clang-tools-22 lld-22 llvm-22 libamdhip64-dev"
TOOLS = ("clang++-22", "clang-offload-bundler-22", "ld.lld-22", "llvm-objdump-22")

pytestmark = [
    *PROOF,
    pytest.mark.skipif(
        not HEADER.exists() or any(shutil.which(tool) is None for tool in TOOLS),
        reason=f"needs Debian's packages {PACKAGES}",
    ),
]


def run(*command: object, seconds: float = PROOF_S) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=scaled(seconds), check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def kinds(full: bool) -> Sequence[Kind]:
    return ALL_KINDS if full else KINDS["gfx942"]


def sources(folder: Path, kinds: Sequence[Kind]) -> Path:
    """The shipped ones, but only kernels of these dtypes, numbers of ranks and codecs are instantiated."""
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc)
    dispatch = csrc / "quick_reduce/gpu/dispatch.h"
    type_names = {"fp32": "Float32", "bf16": "Bfloat16", "fp16": "Float16"}
    chosen = [
        f"template <> inline constexpr bool kIsChosen<{type_names[dtype]}, {size}, CodecKind::k{codec.title()}> = true;"
        for dtype, size, codecs in kinds
        for codec in codecs
    ]
    before = "template <class Type, int W>\nconst void* kernel_of_type("
    choice = ["template <class, int, CodecKind> constexpr bool kIsChosen = false;", *chosen, before]
    patches = [Patch("dispatch.h", before, "\n".join(choice))]
    for codec in ("None", "Int8", "Int6", "Int4"):
        call = f"return kernel_with_codec<Type, Codec{codec}<Type>, W>(algorithm);"
        asked = f"if constexpr (kIsChosen<Type, W, CodecKind::k{codec}>) {call} else return nullptr;"
        patches.append(Patch("dispatch.h", call, asked))
    call = "if (algorithm == Algorithm::kRegistered) return kernel_address<RegisteredWork<Raw, Type, W>>();"
    asked = f"if constexpr (kIsChosen<Type, W, CodecKind::kNone>) {call}"
    patches.append(Patch("dispatch.h", call, asked))
    dispatch.write_text(patched(dispatch.read_text(), patches))
    return csrc


def built_module(csrc: Path, build: Path, settings: Mapping[str, object]) -> Path:
    """The module for GPUs, by CMake with ``settings``."""
    bin_folder = str(Path(sys.executable).parent)
    cmake, ninja = (shutil.which(name, path=bin_folder) or name for name in ("cmake", "ninja"))
    always = {
        "CMAKE_MAKE_PROGRAM": ninja,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": run(sys.executable, "-m", "pybind11", "--cmakedir").strip(),
        "CMAKE_CXX_FLAGS_RELEASE": "-O0",  # the bindings are imported and no more; kernels are compiled as they ship
    }
    defined = [f"-D{key}={value}" for key, value in {**always, **settings}.items()]
    run(cmake, "-G", "Ninja", "-S", csrc, "-B", build, *defined)
    run(ninja, "-C", build, "-j2", "_quick_reduce_gpu")
    (built,) = build.glob("_quick_reduce_gpu*.so")
    return built


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory, kinds: Sequence[Kind]) -> Path:
    folder = tmp_path_factory.mktemp("hip")
    csrc = sources(folder, kinds)
    settings = {
        "SPLITRANK_GPU": "hip",
        "CMAKE_CXX_COMPILER": shutil.which("clang++-22"),  # 10 s of CPU time for the bindings, of which gcc takes 17
        "CMAKE_HIP_COMPILER": shutil.which("clang++-22"),
        "CMAKE_HIP_COMPILER_ROCM_ROOT": STUB,
        "CMAKE_HIP_ARCHITECTURES": "gfx942",
        # Line tables change no instruction; by them the check of the machine code knows its primitives.
        "CMAKE_HIP_FLAGS": "-nogpuinc -nogpulib -Wno-unused-command-line-argument -gline-tables-only",
        "SPLITRANK_HIP_INCLUDE": csrc / "quick_reduce/gpu/hip_prelude.h",
        "hip_DIR": STUB / "lib/cmake/hip",
    }
    return built_module(csrc, folder / "build", settings)


def python(module: Path, program: str) -> str:
    return run(
        sys.executable, "-c", f"import sys; sys.path.insert(0, {str(module.parent)!r})\n{program}", seconds=PROGRAM_S
    )


def test_it_imports_and_finds_no_device(module: Path) -> None:
    program = "import _quick_reduce_gpu as gpu; print(gpu.TARGET, gpu.device_count())"
    assert python(module, program).split() == ["hip", "0"]


def test_a_communicator_says_that_there_is_no_device(module: Path) -> None:
    program = """
import _quick_reduce_gpu as gpu
for world_size in (2, 3):
    try:
        gpu.Communicator(0, world_size, 8, 1024)
    except (RuntimeError, ValueError) as error:
        print(type(error).__name__, error)
"""
    assert python(module, program).splitlines() == [
        "RuntimeError device 0: hip finds 0 devices",
        "ValueError world size 3: it must be 1, 2, 4 or 8",
    ]


@pytest.fixture(scope="module")
def parts(module: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The code objects in the module, one a dtype, and the mailbox's."""
    copy = tmp_path_factory.mktemp("parts") / module.name
    shutil.copy(module, copy)  # they are written beside it
    run("llvm-objdump-22", "--offloading", copy)
    return list(copy.parent.glob("*gfx942*"))


def test_the_kernels_are_in_the_module(module: Path, parts: list[Path], kinds: Sequence[Kind]) -> None:
    assert len(parts) == 4
    symbols = [line for part in parts for line in run("llvm-objdump-22", "-t", part).splitlines()]
    descriptors = {line.split()[-1] for line in symbols if "all_reduce_kernel" in line and line.endswith(".kd")}
    assert len(descriptors) == len(kernel_names(kinds) - MAILBOX)
    mailbox = {line.split()[-1] for line in symbols if "mailbox_" in line and line.endswith(".kd")}
    assert len(mailbox) == 2
    assert run("llvm-objdump-22", "-T", module).count("__hipRegisterFatBinary") == 1


def test_the_kernels_in_the_module_keep_the_rules(parts: list[Path], kinds: Sequence[Kind], tmp_path: Path) -> None:
    """As they ship; test_amd_isa.py has the other machines, and shows that the check can fail."""
    report = tmp_path / "report.json"
    objects = (word for part in parts for word in ("--object", part))
    done = check("--arch", "gfx942", *kind_arguments(kinds), *objects, "--json", report)
    assert done.returncode == 0, done.stderr
    check_report(report, {(name, "gfx942") for name in kernel_names(kinds)})


@pytest.mark.parametrize("side", ["device", "host"])
def test_kernels_compile_with_the_headers_of_rocm(side: str, tmp_path: Path) -> None:
    """As on a ROCm machine, without the prelude: the frontend's part, since the module has the machine code."""
    # The headers are old: LLVM 22 lacks a macro that they use.
    source = tmp_path / "kernel.hip"
    source.write_text(
        '#include "quick_reduce/gpu/kernels.h"\n'
        "namespace splitrank::quick_reduce {\n"
        "using Work = OneShotWork<GpuExecutor<8, 1>, Bfloat16, CodecNone<Bfloat16>, 2>;\n"
        "template __global__ void all_reduce_kernel<Work>(Job);\n"
        "}\n"
    )
    flags = ["--offload-arch=gfx942", f"--offload-{side}-only", "--rocm-path=/usr", "-nogpulib", "-std=c++17"]
    flags += ["-D__HIP_PLATFORM_AMD__=1", "-D__AMDGCN_WAVEFRONT_SIZE=64", "-Wall", "-Wextra", "-Werror"]
    run("clang++-22", "-x", "hip", *flags, "-include", "hip/hip_runtime.h", f"-I{CSRC}", "-fsyntax-only", source)
