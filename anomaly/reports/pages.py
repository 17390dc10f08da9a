"""How a template becomes a page: escaping on, words and numbers as filters, styles inside the page."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from anomaly.reports import figures, wording

TEMPLATES = Path(__file__).parent / "templates"
FIRST_REGIONS = 8  # rows of the table that is open; the others follow on a click, so that the pictures are near


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """Return the environment all pages share: autoescape on, an unknown name is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": wording.number,
        "p_value": wording.p_value,
        "percentile": wording.percentile,
        "percent": wording.percent,
        "date_time": wording.date_time,
        "millimetres": wording.millimetres,
        "data_uri": figures.data_uri,
    }
    made.globals |= {
        "research_use": wording.RESEARCH_USE,
        "how_to_read": wording.HOW_TO_READ,
        "polarity": wording.POLARITY,
        "describe_position": wording.describe_position,
        "explain_neighbours": wording.explain_neighbours,
        "explain_regions": wording.explain_regions,
        "first_regions": FIRST_REGIONS,
    }
    return made


def render(template: str, **values: Any) -> str:
    """Return a page."""
    return environment().get_template(template).render(**values)
