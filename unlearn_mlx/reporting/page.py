"""A page in one file: template, style, charts and their library inside it, and nothing fetched."""

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from altair import SCHEMA_VERSION
from markupsafe import Markup

from unlearn_mlx.evaluation.keys import is_share
from unlearn_mlx.evaluation.schema import written
from unlearn_mlx.reporting.charts import THEMES
from unlearn_mlx.text.printable import printable

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, charts: dict[str, dict[str, Any]], **values: Any) -> str:
    """A page from a template beside this file; ``charts`` are Vega-Lite specifications by name.

    Every text in ``values`` is shown as text: escaped, and without control characters. The page's
    policy lets a browser load nothing and run no script but the two that are written here.
    """
    scripts = [_chart_library(), (TEMPLATES / "page.js").read_text(encoding="utf-8")] if charts else []
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"metric": written}
    environment.tests |= {"share": is_share}
    return environment.get_template(template).render(
        **values,
        charts=charts,
        themes=THEMES,
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),  # our own files
        scripts=[Markup(script) for script in scripts],
        policy="default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src "
        + (" ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'"),
    )


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@functools.cache
def _chart_library() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    version = ".".join(SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    script: str = vl_convert.javascript_bundle(None, version)  # type: ignore[arg-type]  # its stubs forget the None
    return script


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
