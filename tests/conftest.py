"""What all tests share: the real data where it is, the golden set, and sets drawn on the spot."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

# Before PyTorch is imported, here and in every process that a test starts: pytest-xdist's workers
# share the cores, and threads that spin on all of them make each other slow.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import object_store
import pytest
from cocoseg import cli
from cocoseg.prepare.build import PrepareResult, prepare_shards
from cocoseg.prepare.config import PrepareConfig
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image
from warm import Warm

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile("cocoseg", deadline=None, max_examples=60)
settings.load_profile("cocoseg")


def pytest_configure(config: pytest.Config) -> None:
    # pycocotools 2.0.11 under NumPy 2, at every decode
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation:DeprecationWarning")


def pytest_report_header(config: pytest.Config) -> str:
    """Tell how long it takes."""
    if "not long" in config.getoption("markexpr"):
        return "all short tests take 7 minutes on 2 idle cores; --durations=20 tells which"
    return "with the long tests, an hour on 2 cores"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests measured: ``record_property("figure", text)``."""
    passed = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    figures = [
        text for report in passed for name, text in report.user_properties if name == "figure"
    ]
    if figures:
        terminalreporter.section("figures")
        for text in dict.fromkeys(figures):
            terminalreporter.write_line(str(text))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root, which is the package."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real COCO data, beside the checkout or where COCOSEG_DATA says."""
    default = ROOT.parent / "shared" / "data"
    folder = Path(os.environ.get("COCOSEG_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (COCOSEG_DATA=DIR names another place)")
    return folder


@pytest.fixture(scope="session")
def image_processor() -> None:
    """Skip where transformers' own image processors want torchvision, as 5.17 does."""
    transformers = pytest.importorskip("transformers")
    try:
        transformers.SegformerImageProcessorPil()
    except ImportError as error:
        pytest.skip(f"transformers {transformers.__version__}: {str(error).strip()[:80]}")


@dataclass(frozen=True)
class Golden:
    """The drawn data set of `tests/golden`: committed with its shards, read by every version."""

    folder: Path

    def images(self, split: str) -> Path:
        """Image folder of ``train`` or ``val``."""
        return self.folder / split

    def annotations(self, split: str) -> Path:
        """COCO JSON of a split."""
        return self.folder / f"instances_{split}.json"

    def shards(self, split: str) -> Path:
        """Prepared shards of a split: read-only for tests."""
        return self.folder / "shards" / split


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden(ROOT / "tests" / "golden")


@dataclass(frozen=True)
class StoredSample:
    """One sample of a shard, as plain `tarfile` and Pillow see it."""

    key: str
    shard: str
    extension: str
    photo: bytes
    mask_file: bytes
    mask: NDArray[np.integer]
    meta: dict[str, Any]


def read_tars(folder: Path | str) -> Iterator[StoredSample]:
    """Read the shards of a folder without any code of ours."""
    for path in sorted(Path(folder).glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            members = [(m.name.split(".", 1), tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
        for photo, mask, meta in zip(members[0::3], members[1::3], members[2::3], strict=True):
            (key, extension), content = photo
            assert mask[0] == [key, "png"]
            assert meta[0] == [key, "json"]
            with Image.open(io.BytesIO(mask[1])) as png:
                assert png.mode in ("L", "I;16")
                pixels = np.array(png)
            yield StoredSample(
                key, path.name, extension, content, mask[1], pixels, json.loads(meta[1])
            )


@pytest.fixture(scope="session")
def stored() -> Callable[[Path | str], dict[str, StoredSample]]:
    """Read a folder of shards by plain `tarfile`: key → sample, in stored order."""
    return lambda folder: {sample.key: sample for sample in read_tars(folder)}


@pytest.fixture(scope="session")
def stored_photos() -> Callable[[Path], list[tuple[str, bytes, dict[str, Any]]]]:
    """Read shards without masks by plain `tarfile`: (extension, photo, meta) of every sample."""

    def read(folder: Path) -> list[tuple[str, bytes, dict[str, Any]]]:
        found = []
        for path in sorted(folder.glob("*.tar")):
            with tarfile.open(path, "r:") as tar:
                members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
            for (name, photo), (described, meta) in zip(members[0::2], members[1::2], strict=True):
                key, extension = name.split(".", 1)
                assert described == f"{key}.json"
                found.append((extension, photo, json.loads(meta)))
        return found

    return read


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """`prepare/oracle.py`: masks painted the plain pycocotools way, without any code of ours."""
    import oracle

    return oracle


class CocoSet:
    """A small COCO data set in the making: photographs in `images`, the JSON in `content`."""

    def __init__(self, folder: Path) -> None:
        self.images = folder / "images"
        self.json = folder / "instances.json"
        self.images.mkdir(parents=True)
        self.content: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i, "name": n} for i, n in ((1, "cat"), (2, "dog"), (7, "fish"))],
        }

    def photo(
        self,
        image_id: Any,
        width: int = 16,
        height: int = 12,
        *,
        name: str | None = None,
        annotated: tuple[int, int] | None = None,
        orientation: int = 1,
        mode: str = "RGB",
        **save: Any,
    ) -> Path:
        """Draw a photograph of width × height stored pixels, and enter it as `annotated`."""
        path = self.images / (name or f"{image_id}.jpg")
        path.parent.mkdir(exist_ok=True)
        seed = zlib.crc32(repr(image_id).encode())
        noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        if orientation != 1:
            exif = Image.Exif()
            exif[0x0112] = orientation
            save["exif"] = exif
        Image.fromarray(noise).convert(mode).save(path, **save)
        self.entry(image_id, path.relative_to(self.images).as_posix(), annotated or (width, height))
        return path

    def entry(self, image_id: Any, name: str, size: tuple[Any, Any] = (16, 12)) -> None:
        """Enter an image without drawing it."""
        self.content["images"].append(
            {"id": image_id, "file_name": name, "width": size[0], "height": size[1]}
        )

    def annotate(self, image_id: Any, segmentation: Any, category_id: Any = 1, **more: Any) -> None:
        entry = {"id": len(self.content["annotations"]) + 1, "image_id": image_id, "iscrowd": 0}
        entry |= {"category_id": category_id, "segmentation": segmentation}
        self.content["annotations"].append(entry | more)

    def write(self) -> Path:
        self.json.write_text(json.dumps(self.content))
        return self.json

    def config(self, output: Path | str, **settings: Any) -> PrepareConfig:
        pair = {"annotations": (str(self.json),), "images": (str(self.images),)}
        return PrepareConfig(**{**pair, "output": str(output), "engine": "inline", **settings})

    def prepare(self, output: Path | str, **settings: Any) -> PrepareResult:
        """Write the JSON and build the shards in this process."""
        self.write()
        return prepare_shards(self.config(output, **settings))

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of the command line that name this set."""
        return ("--annotations", str(self.json), "--images", str(self.images))


@pytest.fixture
def make_coco_set(tmp_path: Path) -> Callable[[str], CocoSet]:
    return lambda name: CocoSet(tmp_path / name)


@pytest.fixture
def coco_set(make_coco_set: Callable[[str], CocoSet]) -> CocoSet:
    return make_coco_set("set")


@pytest.fixture(scope="session")
def coco_set_class() -> type[CocoSet]:
    """For sets that several tests share."""
    return CocoSet


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_cocoseg(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """Run a command line in this process."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["cocoseg", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Ran(int(ended.value.code or 0), out, err)

    return run


def _hear_ctrl_c() -> None:
    """Undo what a shell does to what it runs in the background: it lets it ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def spawn_cocoseg() -> Callable[..., subprocess.Popen[str]]:
    """Start a command line as a process of its own, in its own process group."""

    def spawn(*arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cocoseg", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_hear_ctrl_c,
        )

    return spawn


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """A process that has imported everything, out of which ranks are forked."""
    warm = Warm(tmp_path_factory.mktemp("warm"))
    yield warm
    warm.close()


@pytest.fixture(scope="session")
def store_server() -> Iterator[object_store.Store]:
    """A real S3 server behind the proxy of faults."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with object_store.serve() as running:
        yield running


@pytest.fixture
def store(
    store_server: object_store.Store, monkeypatch: pytest.MonkeyPatch
) -> Iterator[object_store.Store]:
    """The server, reached by ``s3://`` URLs, with short pauses between attempts."""
    import fsspec
    import s3fs
    from cocoseg.storage import retry

    monkeypatch.setitem(fsspec.config.conf, "s3", store_server.settings())
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    s3fs.S3FileSystem.clear_instance_cache()
    store_server.proxy.clear()
    yield store_server
    store_server.proxy.clear()
    s3fs.S3FileSystem.clear_instance_cache()
