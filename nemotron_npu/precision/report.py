"""``--report`` of ``--precision_compare``: ``precision.json`` and ``precision.html``."""

from __future__ import annotations

from pathlib import Path

from .. import formats
from ..host.files import write_file
from .compare import Precision


def write_report(precision: Precision, candidate: dict, environment: dict, folder: Path) -> Path:
    """Write both files into ``folder``, which is made if it is missing, and return the path of the page.

    ``candidate`` and ``environment`` are those of ``Precision.as_dict``.
    """
    # matplotlib and jinja2 take 2 s to import, and matplotlib is only installed with NeMo
    from .page import render

    folder.mkdir(parents=True, exist_ok=True)
    document = precision.as_dict(candidate, environment)
    write_file(folder / "precision.json", formats.encode(formats.dump(document, indent=1) + "\n"))
    page = folder / "precision.html"
    write_file(page, formats.encode(render(document, precision.pictures)))
    return page
