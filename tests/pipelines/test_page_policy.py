"""What can be said of the page and its policy without a browser; in one: test_page.py."""

from __future__ import annotations

import base64
import hashlib
import re

from pipelines.page import PAGE, content_security_policy


def test_the_policy_names_the_hashes_of_style_and_script() -> None:
    def source(content: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    policy = content_security_policy("<style>a {}</style><p>é</p><script>\n'é'\n</script><script>2</script>")
    directives = dict(directive.split(" ", 1) for directive in policy.split("; "))
    assert directives["style-src"] == source("a {}")
    assert directives["script-src"] == f"{source(chr(10) + repr('é') + chr(10))} {source('2')}"
    assert directives["default-src"] == "'none'"
    assert content_security_policy("<p>plain</p>").count("-src 'none'") == 3


def test_the_page_is_small_and_needs_nothing_from_outside() -> None:
    assert len(PAGE.encode()) < 20_000
    assert re.findall(r"https?:|//[a-z]+\.", PAGE) == []
