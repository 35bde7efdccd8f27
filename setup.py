"""Drives CMake for pip; everything else is in pyproject.toml."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

if sys.version_info < (3, 10):  # noqa: UP036  # pip runs this before it compares requires-python
    sys.exit(f"echo-ext needs Python 3.10 or newer, and this is {sys.version_info[0]}.{sys.version_info[1]}")

ROOT = Path(__file__).parent.resolve()


def description():
    """The README for PyPI, which cannot follow links into the repository."""
    repository = "https://github.com/echo-ext/echo-ext"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = readme.replace("](docs/figures/", f"]({repository}/raw/main/docs/figures/")
    return re.sub(r"\]\((?!https:)", f"]({repository}/blob/main/", readme)


def wheel_nvcc():
    """The compiler of NVIDIA's wheels in the build environment, or None."""
    for entry in (sysconfig.get_path("purelib"), *sys.path):
        nvcc = Path(entry) / "nvidia" / "cu13" / "bin" / "nvcc"
        if nvcc.is_file():
            return nvcc
    return None


def build_environment():
    """The environment for CMake: a system nvcc wins over the wheel's, which needs to be told where its library is."""
    env = dict(os.environ)
    if sys.platform == "win32":
        env.setdefault("CXX", "clang++")  # CMake would find Visual C++ first, which cannot build the core
    if env.get("ECHO_EXT_CUDA") == "0" or env.get("CUDACXX") or shutil.which("nvcc"):
        return env
    nvcc = wheel_nvcc()
    if nvcc is not None:
        for tool in nvcc.parent.iterdir():
            tool.chmod(tool.stat().st_mode | 0o111)
        env["CUDACXX"] = str(nvcc)
        library = str(nvcc.parent.parent / "lib")
        env["LIBRARY_PATH"] = os.pathsep.join(filter(None, [library, env.get("LIBRARY_PATH")]))
    return env


def fingerprint(module):
    """A module and what it was built from: the sources, the options and the compilers that would be chosen."""
    options = [os.environ.get(f"ECHO_EXT_{name}", "") for name in ("CUDA", "CUDA_ARCHS", "WERROR")]
    compilers = [
        os.environ.get(name) or str(shutil.which(program)) for name, program in (("CXX", "c++"), ("CUDACXX", "nvcc"))
    ]
    digest = hashlib.sha256(repr((module.name, options, compilers, wheel_nvcc() is None)).encode())
    for path in [module, ROOT / "CMakeLists.txt", *sorted((ROOT / "csrc").rglob("*.*"))]:
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class FreshBuild(build):
    """Builds wheels in a tree of their own: what an earlier build left behind never gets into a wheel."""

    def initialize_options(self):
        super().initialize_options()
        self.fresh_tree = tempfile.TemporaryDirectory(prefix="echo-ext-build-")
        self.build_base = self.fresh_tree.name


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        if self.editable_mode:
            self.build_in_place(ext)
        else:
            self.run_cmake(Path(self.get_ext_fullpath(ext.name)).parent.resolve(), Path(self.build_temp).resolve())

    def build_in_place(self, ext):
        """Build the module in the source tree, unless it is there: installing other extras builds nothing again."""
        module, tree = ROOT / self.get_ext_filename(ext.name), ROOT / "build" / "native"
        built = tree / "fingerprint"
        if not (module.exists() and built.exists() and built.read_text() == fingerprint(module)):
            built.unlink(missing_ok=True)
            (tree / "CMakeCache.txt").unlink(missing_ok=True)  # the build environment's paths change every time
            self.run_cmake(ROOT / "echo_ext", tree)
            built.write_text(fingerprint(module))
        # setuptools copies what lies in its build folder to the source tree, where the module is already.
        copied_from = Path(self.get_ext_fullpath(ext.name))
        copied_from.parent.mkdir(parents=True, exist_ok=True)
        if not copied_from.exists():
            shutil.copyfile(module, copied_from)

    def run_cmake(self, output, tree):
        """Configure and build in a tree, and put the module into the output folder."""
        tree.mkdir(parents=True, exist_ok=True)
        env = build_environment()
        pybind11 = importlib.util.find_spec("pybind11").submodule_search_locations[0]
        configure = [
            "cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(tree),
            f"-DPython_EXECUTABLE={Path(sys.executable).as_posix()}",
            f"-Dpybind11_DIR={Path(pybind11).as_posix()}/share/cmake/pybind11",
            f"-DECHO_EXT_OUTPUT_DIR={output.as_posix()}",
            f"-DECHO_EXT_CUDA={env.get('ECHO_EXT_CUDA', '')}",
            f"-DECHO_EXT_CUDA_ARCHS={env.get('ECHO_EXT_CUDA_ARCHS', '')}",
            f"-DECHO_EXT_WERROR={env.get('ECHO_EXT_WERROR', '0')}",
        ]  # fmt: skip
        for command in (configure, ["cmake", "--build", str(tree)]):
            try:
                subprocess.run(command, env=env, check=True)
            except FileNotFoundError:
                sys.exit("echo-ext: cmake was not found: install cmake and ninja, or let pip build in isolation")
            except subprocess.CalledProcessError as failure:
                sys.exit(
                    f"echo-ext: the native core could not be built: cmake's message is above (status "
                    f"{failure.returncode}). A C++17 compiler is needed (g++ 11 or clang 13 or newer; on Debian: apt "
                    "install g++; on Windows: LLVM); ECHO_EXT_CUDA=0 leaves the CUDA part out."
                )


setup(
    long_description=description(),
    long_description_content_type="text/markdown",
    ext_modules=[Extension("echo_ext._C", sources=[])],
    cmdclass={"build": FreshBuild, "build_ext": CMakeBuild},
)
