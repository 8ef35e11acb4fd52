"""What the site takes from the code, so that it is written once."""

from typing import Any

import optlayer


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace("<!-- statuses -->", statuses()).replace("<!-- version -->", optlayer.__version__)


def statuses() -> str:
    rows = [f"| {int(s)} | `{s.name}` | {s.explanation} |" for s in optlayer.Status]
    return "\n".join(["| value | status | what it means, and what to try |", "|---|---|---|", *rows])
