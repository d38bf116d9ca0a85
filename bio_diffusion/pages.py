"""The frame of a report: one HTML page that needs no network.

Its content security policy allows nothing from outside. What users wrote is escaped here; bodies
are made by the domains, which escape theirs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

__all__ = ["page", "settings_table"]


def page(title: str, style: str, body: str, allow: str = "") -> str:
    """A whole page.

    Args:
        title: Of the page, also its heading.
        style: CSS.
        body: HTML below the heading.
        allow: Further directives of the policy, such as a `script-src` of hashes.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    policy += f"; {allow}" if allow else ""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style}</style></head>
<body>
<h1>{escape(title)}</h1>
{body}
</body></html>
"""


def settings_table(settings: Mapping[str, Any]) -> str:
    """Settings under a heading, a row each."""
    rows = "".join(
        f'<tr><td>{escape(str(key))}</td><td class="wide">{escape(_plain(value))}</td></tr>'
        for key, value in settings.items()
    )
    return f'<h2>Settings</h2>\n<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
