"""Gather what the docs site shows in build/site_source, from which Zensical builds the site.

That is README, the other pages, the notebook with its outputs, and the public names with their
docstrings. The pages link to each other as in the repository; here they lie beside each other.
"""

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

from nbconvert import MarkdownExporter

import rd_jax

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "build" / "site_source"
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
# The name in the site of each file in the repository that is part of it.
NAMES = {ROOT / "README.md": "index.md", NOTEBOOK: "quickstart.md"}
NAMES |= {ROOT / name: name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")}
NAMES |= {path: path.name for path in (ROOT / "docs").glob("*") if path.suffix != ".py"}
LINK = re.compile(r"(\[[^]]*\])\((?!https?:|#)([^)#]+)([^)]*)\)")
BLOCK = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
_PREDICTOR = "rd_jax.predict.predictor"
REFERENCE = {
    "Train": ["rd_jax.fit"],
    "Predict": [
        *(f"rd_jax.{name}" for name in ("load_predictor", "score_image", "score_files")),
        *("rd_jax.score_arrays", f"{_PREDICTOR}.Predictor", f"{_PREDICTOR}.Prediction"),
        *(f"{_PREDICTOR}.Unreadable", "rd_jax.method.thresholds.Thresholds", "rd_jax.restore"),
    ],
    "The method": [
        *("rd_jax.Model", "rd_jax.TrainState", "rd_jax.create_train_state"),
        *("rd_jax.make_train_step", "rd_jax.make_distillation_step", "rd_jax.Scoring"),
        *("rd_jax.make_scorer", "rd_jax.anomaly_map", "rd_jax.image_score", "rd_jax.normalize"),
    ],
    "Losses": [f"rd_jax.{loss}_cosine_loss" for loss in ("per_position", "flattened", "mixed")],
    "Metrics": ["rd_jax.auroc", "rd_jax.aupro"],
    "Teachers": ["rd_jax.load_teacher", "rd_jax.convert_teacher", "rd_jax.convert_rd4ad"],
    "Export": ["rd_jax.to_stablehlo", "rd_jax.to_onnx"],
    "Networks": ["rd_jax.models"],
}


def linked(page: Path, markdown: str, repository: str | None) -> str:
    """Return a page whose links lead to pages of the site, or to files of the repository.

    Before the repository has an address, its files are named and not linked. Code stays as it is.
    """

    def link(found: re.Match[str]) -> str:
        text, path, anchor = found.groups()
        target = (page.parent / path).resolve()
        if target in NAMES:
            return f"{text}({NAMES[target]}{anchor})"
        if not target.exists():
            raise SystemExit(f"{page.relative_to(ROOT)} links to {path}, which does not exist")
        if repository is None:
            return text[1:-1]
        return f"{text}({repository}/blob/HEAD/{target.relative_to(ROOT)}{anchor})"

    parts = BLOCK.split(markdown)
    return "".join(part if i % 2 else LINK.sub(link, part) for i, part in enumerate(parts))


def reference() -> str:
    """Return the page of public names, each of which mkdocstrings replaces by its docstring."""
    names = [name for names in REFERENCE.values() for name in names]
    shown = {name.removeprefix("rd_jax.") for name in names}
    if missing := set(rd_jax.__all__) - shown:
        raise SystemExit(f"docs/make_site.py: name in REFERENCE also {', '.join(sorted(missing))}")
    parts = ["# Public names"]
    for title, members in REFERENCE.items():
        parts += [f"## {title}", *(f"::: {name}" for name in members)]
    return "\n\n".join(parts) + "\n"


def write_notebook() -> None:
    """Write the notebook as a page, with its stored outputs and pictures beside it."""
    body, resources = MarkdownExporter().from_filename(str(NOTEBOOK))
    for name, content in resources["outputs"].items():
        (SOURCE / name).write_bytes(content)
    (SOURCE / NAMES[NOTEBOOK]).write_text(body)


def listed(nav: list[Any]) -> set[str]:
    """Return the pages in a nested list of titles and pages."""
    pages: set[str] = set()
    for entry in nav:
        for item in entry.values() if isinstance(entry, dict) else [entry]:
            pages |= {item} if isinstance(item, str) else listed(item)
    return pages


def main() -> None:
    """Write the folder anew."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    repository = project.get("urls", {}).get("Repository")
    shutil.rmtree(SOURCE, ignore_errors=True)
    SOURCE.mkdir(parents=True)
    for path, name in NAMES.items():
        if path.suffix == ".md":
            (SOURCE / name).write_text(linked(path, path.read_text(), repository))
        elif path != NOTEBOOK:
            shutil.copy(path, SOURCE / name)
    write_notebook()
    (SOURCE / "reference.md").write_text(reference())
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    if unlisted := {path.name for path in SOURCE.glob("*.md")} ^ listed(site["nav"]):
        raise SystemExit(
            f"zensical.toml: nav must list each page once: see {', '.join(sorted(unlisted))}"
        )


if __name__ == "__main__":
    main()
