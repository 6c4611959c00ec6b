"""The page to try the service out, and the content-security policy under which browsers may show it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
"""The page: one document of HTML that needs nothing but the service itself."""


def content_security_policy(page: str) -> str:
    """Value of the Content-Security-Policy header for a page with inline style and script.

    Exactly the page's own ``<style>`` and ``<script>`` elements count, by SHA-256, and requests go to the page's own
    origin only. Trusted types forbid making HTML of strings, whatever the script does.
    """
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src {hashes(page, 'style')}",
            f"script-src {hashes(page, 'script')}",
            "connect-src 'self'",
            "img-src data:",  # the empty icon, without which browsers ask for /favicon.ico
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def hashes(page: str, tag: str) -> str:
    """The sources that allow the content of each of the page's elements with this tag."""
    contents = re.findall(f"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
