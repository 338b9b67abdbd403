"""The parts of a page, and the one place where text becomes HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from relaxprune import __version__
from relaxprune.support.markup import html_table

from .style import STYLE
from .template import PAGE


@dataclass(frozen=True)
class Picture:
    """A figure, as SVG that we made, and what it shows."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class Table:
    """A table, as HTML that we made; folded away if it is long."""

    title: str
    html: Markup
    folded: bool = False


@dataclass(frozen=True)
class Group:
    """Figures and tables that belong together."""

    title: str = ""
    figures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Section:
    """A section of the page; ``key`` is its anchor."""

    key: str
    title: str
    text: Sequence[str] = ()
    groups: Sequence[Group] = ()
    code: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """The content of a page."""

    title: str
    lead: Sequence[str]
    facts: Sequence[tuple[str, str, str]]
    sections: Sequence[Section]
    notices: Sequence[str] = field(default=())


def picture(svg: str, caption: str) -> Picture:
    """Return a figure from the SVG that ``drawing.svg`` made, in which matplotlib has escaped all text."""
    return Picture(Markup(svg), caption)


def page_table(title: str, head: Sequence[object], rows: Sequence[Sequence[object]], folded: bool = False) -> Table:
    """Return a table of plain values; every cell is escaped."""
    return Table(title, Markup(html_table(rows, head, title)), folded)


def render(page: Page, json_name: str) -> str:
    """Return the page as HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(PAGE).render(
        title=page.title,
        lead=page.lead,
        notices=page.notices,
        facts=page.facts,
        sections=page.sections,
        style=Markup(STYLE),
        version=__version__,
        json_name=json_name,
    )
