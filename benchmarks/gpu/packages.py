"""Which packages cocoseg needs, which of them this Python lacks, and how it gets them from wheels.

No module of cocoseg, and no package but Python's own, is imported here: nothing else may be there.
"""

import importlib.util
import platform
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

NEEDED = {
    "absl-py": "absl",
    "albucore": "albucore",
    "albumentations": "albumentations",
    "annotated-types": "annotated_types",
    "braceexpand": "braceexpand",
    "click": "click",
    "filelock": "filelock",
    "fsspec": "fsspec",
    "grpcio": "grpc",
    "huggingface-hub": "huggingface_hub",
    "Markdown": "markdown",
    "MarkupSafe": "markupsafe",
    "msgspec": "msgspec",
    "numpy": "numpy",
    "opencv-python-headless": "cv2",
    "packaging": "packaging",
    "pillow": "PIL",
    "protobuf": "google.protobuf",
    "pycocotools": "pycocotools",
    "pydantic": "pydantic",
    "pydantic-core": "pydantic_core",
    "PyYAML": "yaml",
    "RLEMaskLib": "rlemasklib",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "setuptools": "setuptools",
    "simplejpeg": "simplejpeg",
    "simsimd": "simsimd",
    "stringzilla": "stringzilla",
    "tensorboard": "tensorboard",
    "tensorboard-data-server": "tensorboard_data_server",
    "torch": "torch",
    "tqdm": "tqdm",
    "transformers": "transformers",
    "typing-extensions": "typing_extensions",
    "typing-inspection": "typing_inspection",
    "webdataset": "webdataset",
    "Werkzeug": "werkzeug",
    "xxhash": "xxhash",
    "zlib-ng": "zlib_ng",
}
"""Package → module: the dependencies in pyproject.toml and what they need in turn. What torch and
transformers need is left out: who has them has it."""


def missing_packages() -> list[str]:
    """Return the packages whose modules this Python does not find; nothing is imported."""
    return [package for package, module in NEEDED.items() if not _is_found(module)]


def _is_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # of 'google.protobuf' without 'google'
        return False


def how_to_get(packages: list[str], checkout: Path) -> str:
    """Return what to do about missing packages, on a machine with and without a network."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    machine = platform.machine()
    told = f"missing packages ({len(packages)}): {' '.join(packages)}\n"
    if "torch" in packages:
        told += "torch: install a build for this machine's CUDA first, as pytorch.org says\n"
    names = " ".join(name for name in packages if name != "torch")
    if not names:
        return told.rstrip()
    return (
        f"{told}"
        "Install them, or carry them as wheels. On a computer with a network:\n"
        f"  pip download --no-deps --only-binary=:all: --python-version {version} "
        f"--platform manylinux_2_28_{machine} --platform manylinux_2_27_{machine} "
        f"--platform manylinux2014_{machine} --platform manylinux_2_17_{machine} "
        f"--constraint {checkout / 'constraints.txt'} --dest DIR {names}\n"
        "Copy DIR to this machine, then:\n"
        f"  {sys.executable} -m pip install --no-index --no-deps --find-links DIR {names}\n"
        "or, to leave this Python as it is: COCOSEG_WHEELS=DIR make bench-gpu"
    )


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel, by its file name. Source: Python Packaging User Guide, "Binary distribution format".

    ``NAME-VERSION[-BUILD]-PYTHON-ABI-PLATFORM.whl``; each of the last three may list several by
    dots.
    """

    path: Path
    pythons: tuple[str, ...]
    abis: tuple[str, ...]
    platforms: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> "Wheel":
        """Read the file name."""
        python, abi, system = path.stem.split("-")[-3:]
        return cls(path, *(tuple(tags.split(".")) for tags in (python, abi, system)))

    @property
    def fits(self) -> bool:
        """Whether it is for this Python and machine."""
        minor, machine = sys.version_info.minor, platform.machine()
        earlier = {f"3{number}" for number in range(minor + 1)}
        pure = {"py3", *(f"py{number}" for number in earlier)}
        compiled = {f"cp3{minor}"}
        if "abi3" in self.abis:
            compiled |= {f"cp{number}" for number in earlier}
        return bool((pure | compiled) & set(self.pythons)) and any(
            tag == "any" or (tag.startswith(("manylinux", "linux")) and tag.endswith(machine))
            for tag in self.platforms
        )


def unpack_wheels(folder: Path, target: Path) -> list[str]:
    """Unpack the wheels of a folder, so that `target` can be put on `sys.path`.

    Returns
    -------
    list of str
        File names of wheels that are for another Python or machine; they are left out.

    Raises
    ------
    ValueError
        If there is no such folder, or it holds no wheel, or a damaged one.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    wheels = [Wheel.of(path) for path in sorted(folder.glob("*.whl"))]
    if not wheels:
        raise ValueError(f"{folder}: holds no wheels (*.whl)")
    for wheel in wheels:
        if not wheel.fits:
            continue
        try:
            with zipfile.ZipFile(wheel.path) as archive:
                archive.extractall(target)
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{wheel.path}: cannot be unpacked: {error}") from None
    for data in target.glob("*.data"):
        for scheme in ("purelib", "platlib"):  # where a wheel keeps modules beside its top level
            if (data / scheme).is_dir():
                shutil.copytree(data / scheme, target, dirs_exist_ok=True)
    return [wheel.path.name for wheel in wheels if not wheel.fits]
