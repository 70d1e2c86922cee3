"""``cocoseg view --export``: chosen samples as one file that needs no server."""

import base64
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ..errors import ConfigError
from ..figures import bytes_text
from ..results import Result
from ..storage import locate
from ..storage.lists import endings, read_list
from .answers import Answers
from .sources import Sources

_MOST = 500  # samples of a file: a browser holds all of them
_IMPORT = re.compile(r'^import ({.*}) from "\./(.*)";$', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?(?:function|const|let) (\w+))", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Exported(Result):
    """A page that was written."""

    output: str
    samples: int
    size: int
    """[bytes]"""

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {"output": self.output, "samples": self.samples, "bytes": self.size}

    def text(self) -> str:
        """Return what is printed."""
        return f"{self.output}: {self.samples} samples, {bytes_text(self.size)}"


def export_page(sources: Sources, output: str, only: str | None = None) -> Exported:
    """Write samples with their masks and scores as one HTML file, to be opened from a disk.

    Parameters
    ----------
    output
        The file; a local path or URL.
    only
        A list of samples, ``SHARDS/KEY`` or ``KEY`` a line, as the page saves it; None takes all.

    Raises
    ------
    ConfigError
        If the samples are too many, or are not there.
    DataError
        If the JSON of a sample is damaged.
    """
    answers = Answers(sources)
    positions = _chosen(answers, only)
    overview = answers.describe()
    overview |= {
        "positions": positions,
        "facts": {position: answers.table.facts(position) for position in positions},
    }
    layers = ["image", "truth", *(f"prediction-{i}" for i in range(len(sources.predictions)))]
    embedded = {
        "json": {
            "api/overview": overview,
            **{f"api/samples/{p}": answers.describe_sample(p) for p in positions},
        },
        "pictures": {
            f"pictures/{p}?layers={','.join(layers)}": base64.b64encode(
                answers.encode_layers(p, layers)
            ).decode()
            for p in positions
        },
    }
    content = _page(json.dumps(embedded, separators=(",", ":"))).encode()
    locate(output).publish_bytes(content)
    return Exported(output, len(positions), len(content))


def _chosen(answers: Answers, only: str | None) -> list[int]:
    table = answers.table
    positions = list(range(len(table)))
    if only is not None:
        places = defaultdict(list)
        for position in positions:
            for name in (table.path(position), table.keys[position]):
                places[name].append(position)
        lines = read_list(locate(only), "--only")
        found = [
            next((places[name] for name in endings(line) if name in places), []) for line in lines
        ]
        for line, several in zip(lines, found, strict=True):
            if len(several) != 1:
                problem = "no such sample" if not several else "is in several folders of shards"
                raise ConfigError(f"--only {only}: {line}: {problem}")
        positions = [position for (position,) in found]
    if not positions:
        raise ConfigError("there is no sample to export")
    if len(positions) > _MOST:
        raise ConfigError(
            f"{len(positions):,} samples are too many for one file; choose up to {_MOST} in the "
            "page, save their list, and give it by --only"
        )
    return positions


def _page(embedded: str) -> str:
    """Return the page with its modules, its style and what it shows in itself."""
    script = "\n".join(["const modules = {};", *_modules("app.js", [])])
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    data = embedded.replace("<", "\\u003c")
    page = _static("index.html")
    parts = {
        '<meta charset="utf-8">': '<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<link rel="stylesheet" href="style.css">': f"<style>\n{_static('style.css')}</style>",
        '<script type="module" src="app.js"></script>': "",
        "</body>": f'<script type="application/json" id="embedded">{data}</script>\n'
        f'<script type="module">{script}</script>\n</body>',
    }
    for old, new in parts.items():
        assert page.count(old) == 1
        page = page.replace(old, new)
    return page


def _modules(name: str, done: list[str]) -> Iterator[str]:
    """Yield modules as functions that are called at once, those first that others import."""
    done.append(name)
    source = _static(name)
    for _, imported in _IMPORT.findall(source):
        if imported not in done:
            yield from _modules(imported, done)
    names = ", ".join(exported for _, exported in _EXPORT.findall(source))
    body = _IMPORT.sub(lambda found: f'const {found[1]} = modules["{found[2]}"];', source)
    body = _EXPORT.sub(lambda found: found[1], body)
    yield f'modules["{name}"] = (() => {{\n{body}\nreturn {{ {names} }};\n}})();'


def _static(name: str) -> str:
    return (resources.files(__package__ or "") / "static" / name).read_text(encoding="utf-8")
