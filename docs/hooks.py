"""What the site takes from the code, so that it is written once."""

from typing import Any

import optlayer


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace("<!-- statuses -->", statuses()).replace("<!-- version -->", optlayer.__version__)


def on_page_content(html: str, **_: Any) -> str:
    """A signature shows what a default is, not the name it has in the module."""
    return html.replace("_DEFAULT", "Settings()")


def statuses() -> str:
    rows = [f"| {int(s)} | `{s.name}` | {s.explanation} |" for s in optlayer.Status]
    return "\n".join(["| value | status | what it means, and what to try |", "|---|---|---|", *rows])
