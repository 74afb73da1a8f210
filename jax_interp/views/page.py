"""Pages: HTML files that fetch nothing, show text from outside as text, and run only what they were written with.

Every `{{ value }}` of a template is escaped. Control characters, and characters that change the direction of text, are
shown as escapes (`core.terminal.printable`). Text that may be in any script is isolated by `<bdi>`, so that it does not
move its neighbours. A content-security policy allows only the page's own styles, and scripts if it has some.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import jinja2
from markupsafe import Markup

from jax_interp.core.terminal import printable
from jax_interp.views import tokens

NONE = "'none'"
CHARSET = '<meta charset="utf-8">'
ATTRIBUTES = r'(?![^>]*type="application/octet-stream")[^>]*'
"""The attributes of an element that is not a block of data. A browser does not run data."""


def render_page(template: str, **values: Any) -> str:
    """Render a template of the folder `templates` as a whole page with a content-security policy.

    Args:
      template: the file name of the template. Its head begins with `<meta charset="utf-8">`.
      values: the values of the template. Only `Markup` is inserted as HTML.
    """
    page = environment().get_template(template).render(**values)
    head, charset, rest = page.partition(CHARSET)
    assert charset, f"{template} has no {CHARSET}"
    policy = Markup('\n<meta http-equiv="Content-Security-Policy" content="{}">').format(content_policy(page))
    return f"{head}{charset}{policy}{rest}"


def content_policy(page: str) -> str:
    """The content-security policy of a page: only its own `<style>` and `<script>` elements, and embedded images.

    An element is allowed by the hash of its content. Style attributes are allowed: figures and tokens need them. Text
    from outside is escaped, so every element in the page is from a template or a figure.
    """
    allowed = {
        name: " ".join(
            dict.fromkeys(_hash(body) for body in re.findall(rf"<{name}\b{ATTRIBUTES}>(.*?)</{name}>", page, re.S))
        )
        for name in ("style", "script")
    }
    return (
        f"default-src 'none'; img-src data:; style-src-elem {allowed['style'] or NONE}; "
        f"style-src-attr 'unsafe-inline'; script-src {allowed['script'] or NONE}; base-uri 'none'; form-action 'none'"
    )


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def environment() -> jinja2.Environment:
    """The templates of this folder. Autoescape is on, and an undefined name is an error."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("jax_interp.views", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["n"] = grouped
    templates.filters["sig"] = significant
    templates.filters["pct"] = percent
    templates.filters["duration"] = duration
    templates.filters["token"] = tokens.isolated_token
    templates.filters["isolated"] = tokens.isolated
    templates.globals["coloured"] = tokens.coloured
    templates.globals["compared"] = tokens.compared
    return templates


def _shown(value: Any) -> Any:
    return value if not isinstance(value, str) or isinstance(value, Markup) else printable(value, keep="\n\t")


def grouped(value: float) -> str:
    """A number with thousands separated: 4096 -> 4,096."""
    return f"{value:,}"


def significant(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits; a dash for None and NaN."""
    if value is None or value != value:
        return "–"
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if "e+" in text else text


def percent(value: float | None) -> str:
    """A fraction as a percentage: 0.9731 -> 97.3 %. Percentages below 1 have two significant digits."""
    if value is None or value != value:
        return "–"
    hundred = 100 * value
    return f"{hundred:.1f} %" if abs(hundred) >= 1 or hundred == 0 else f"{hundred:.2g} %"


def duration(seconds: float) -> str:
    """Seconds as minutes and seconds: 75 -> 1 min 15 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
