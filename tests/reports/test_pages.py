from __future__ import annotations

import re

import jinja2
import pytest

from anomaly.reports.pages import TEMPLATES, environment, render


def test_every_template_compiles() -> None:
    names = [path.name for path in sorted(TEMPLATES.glob("*.j2"))]

    assert "case.html.j2" in names
    assert all(environment().get_template(name).root_render_func for name in names)


def test_values_are_escaped() -> None:
    text = environment().from_string("<p>{{ scan_id }}</p>").render(scan_id="<script>&")

    assert text == "<p>&lt;script&gt;&amp;</p>"


def test_a_name_that_is_not_given_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="'run' is undefined"):
        render("worklist.html.j2")


def test_a_page_has_style_research_notice_and_security_policy() -> None:
    page = render("page.html.j2")

    assert page.count("Research use only. Not a medical device.") == 2
    assert ".research {" in page
    assert re.search(r'Content-Security-Policy" content="default-src \'none\';', page)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ 0.0476 | p_value }}", "0.048"),
        ("{{ 1234 | number }}", "1 234"),
        ("{{ 0.05 | percent }}", "5 %"),
        ("{{ (-36.2, 0, 32) | millimetres }}", "−36, 0, +32"),
        ("{{ png | data_uri }}", "data:image/png;base64,UE5H"),
        ("{{ 'Use `a <b>` & `c`.' | with_code }}", "Use <code>a &lt;b&gt;</code> &amp; <code>c</code>."),
    ],
)
def test_filters_format_values(template: str, expected: str) -> None:
    assert environment().from_string(template).render(png=b"PNG") == expected
