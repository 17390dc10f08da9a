"""Render the Jinja templates of the pages: escaped values, number formats as filters, styles inside the page."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from anomaly.reports import figures, wording

TEMPLATES = Path(__file__).parent / "templates"
N_OPEN_REGIONS = 8  # rows shown at once; the others open on a click, which keeps the figures near the top


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """Return the Jinja environment of all pages: it escapes values, and an undefined name is an error."""
    shared = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared.filters |= {
        "number": wording.number,
        "p_value": wording.p_value,
        "percentile": wording.percentile,
        "percent": wording.percent,
        "date_time": wording.date_time,
        "millimetres": wording.millimetres,
        "data_uri": figures.data_uri,
        "with_code": _with_code,
    }
    shared.globals |= {
        "research_use": wording.RESEARCH_USE,
        "how_to_read": wording.how_to_read,
        "describe_polarity": wording.describe_polarity,
        "intensity_heading": wording.intensity_heading,
        "describe_position": wording.describe_position,
        "explain_neighbours": wording.explain_neighbours,
        "explain_regions": wording.explain_regions,
        "first_regions": N_OPEN_REGIONS,
    }
    return shared


def render(template: str, **values: Any) -> str:
    """Render a page.

    Parameters
    ----------
    template
        File name in ``templates/``.
    values
        Names that the template uses.

    Raises
    ------
    jinja2.UndefinedError
        The template uses a name that is not given.
    """
    return environment().get_template(template).render(**values)


def _with_code(text: str) -> Markup:
    """Return escaped text in which commands between backticks are ``<code>``."""
    code = Markup("<code>{}</code>")
    parts = (code.format(part) if index % 2 else escape(part) for index, part in enumerate(text.split("`")))
    return Markup().join(parts)
