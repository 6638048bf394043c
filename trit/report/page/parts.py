"""Pieces that both pages are made of: the document around its sections, tables, facts. In: words and numbers. Out: markup."""

from trit.report.page.style import STYLE
from trit.report.page.svg import e

# Nothing may be fetched and nothing runs: the page is the file.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title, head, sections, foot):
    """The whole page. `sections` are (name for links, heading, markup), those without markup left out."""
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{e(heading)}</a>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}" aria-labelledby="h-{name}"><h2 id="h-{name}">{e(heading)}</h2>{markup}</section>'
        for name, heading, markup in sections
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{e(title)}</title><link rel="icon" href="data:,">'
        f'<style>{STYLE}</style></head>\n<body><header>{head}<nav aria-label="Sections">{links}</nav></header>\n'
        f"<main>{body}</main>\n<footer>{foot}</footer></body></html>\n"
    )


def note(text):
    """A quiet paragraph."""
    return f"<p class=note>{e(text)}</p>"


def absent(text):
    """One line on what is left out, and why."""
    return f"<p class=absent>{e(text)}</p>"


def charts(figures, small=False):
    """Figures side by side where there is room."""
    figures = [figure for figure in figures if figure]
    return f'<div class="charts{" small" * small}">{"".join(figures)}</div>' if figures else ""


def facts(pairs):
    """A definition list: [(what, value, more)]."""
    rows = (f"<div><dt>{e(what)}</dt><dd>{e(value)}{f'<small>{e(more)}</small>' if more else ''}</dd></div>" for what, value, more in pairs)
    return f'<dl class="facts">{"".join(rows)}</dl>'


def table(heads, rows, words=(), long=()):
    """A table in a box of its own that scrolls; columns are numbers, set to the right, but for those numbered in `words`; those in `long`
    break their lines."""

    def kind(place):
        return " class=long" if place in long else "" if place in words else " class=n"

    top = "".join(f"<th scope=col{kind(place)}>{e(head)}</th>" for place, head in enumerate(heads))
    lines = ("<tr>" + "".join(f"<td{kind(place)}>{e(value)}</td>" for place, value in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class=scroll tabindex="0" role="region" aria-label="table"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def folded(summary, body):
    """Markup behind a line that opens it."""
    return f"<details><summary>{e(summary)}</summary>{body}</details>"
