"""Pieces -> one closed HTML file.   in: escaped HTML, texts   out: a page
who calls: report.py, report_eval.py   (imports no torch)

A page loads nothing and runs nothing: no script, no font, no address; a policy in its head forbids
them too.  All texts are escaped, whatever users and models wrote.
Read next: report.css (its looks).
"""

from functools import cache
from html import escape
from importlib.resources import files

__all__ = ["render_page", "safe_text", "section", "wrapped"]

# Nothing may be loaded or run, even if something slipped through unescaped.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render_page(title: str, body: str, style: str = "") -> str:
    """The whole file; `body` is HTML, `style` stands after report.css."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{safe_text(title)}</title>\n<style>\n{_stylesheet()}{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n"
        "<footer><p>This page is one file: it loads nothing and runs nothing, and can be kept, "
        "sent or printed as it is.</p></footer>\n</body>\n</html>\n"
    )


def section(heading: str, content: str, *, before: str = "", kind: str = "part") -> str:
    """A part under its heading; heading is text, the others HTML."""
    return f'<section class="{kind}">\n<h2>{before}{safe_text(heading)}</h2>\n{content}</section>\n'


def wrapped(tag: str, content: str, kind: str) -> str:
    """HTML in an element of a class; empty where there is nothing to wrap."""
    return f'<{tag} class="{kind}">\n{content}</{tag}>\n' if content else ""


def safe_text(value: str) -> str:
    """Any text, safe between tags and in quoted attributes; what HTML cannot hold is marked."""
    clean = "".join(
        character
        if (character >= " " and not "\x7f" <= character <= "\x9f") or character in "\n\t"
        else "\ufffd"
        for character in value.replace("\r\n", "\n").replace("\r", "\n")
    )
    # A lone surrogate is valid in JSON and in Python, but not in UTF-8.
    return escape(clean.encode(errors="replace").decode())


@cache
def _stylesheet() -> str:
    return (files("nanochat.evals") / "report.css").read_text(encoding="utf-8")
