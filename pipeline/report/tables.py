"""Tables as Markdown and LaTeX."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

ROUNDING = 1e-9  # far above that of a quotient of counts, far below what an image makes
MARKDOWN_SPECIAL = re.compile(r"([\\|*_`<>\[\]])")
LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "{}$&#_%"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


@dataclass(frozen=True)
class Table:
    """A header and rows of as many cells; the first `names` columns hold names, the others numbers."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    names: int = 1


def escape_markdown(text: str) -> str:
    """Text that no reader of Markdown takes for markup, on one line."""
    return MARKDOWN_SPECIAL.sub(r"\\\1", " ".join(text.split()))


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it is, on one line."""
    return "".join(LATEX_SPECIAL.get(character, character) for character in " ".join(text.split()))


def markdown(table: Table) -> str:
    lines = [map(escape_markdown, table.header), ["---"] * len(table.header)]
    lines += [map(escape_markdown, row) for row in table.rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def latex(table: Table) -> str:
    """A tabular; sigma and r of the header are set as mathematics."""
    header = [escape_latex(cell).replace("sigma", r"$\sigma$").replace("r =", "$r$ =") for cell in table.header]
    body = [" & ".join(row) + r" \\" for row in (header, *(map(escape_latex, row) for row in table.rows))]
    columns = "l" * table.names + "r" * (len(table.header) - table.names)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\hline", body[0], r"\hline", *body[1:], r"\hline", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def markdown_page(lead: Sequence[str], tables: Sequence[Table]) -> str:
    parts = [*map(escape_markdown, lead)]
    parts += chain.from_iterable((escape_markdown(table.caption), markdown(table).rstrip()) for table in tables)
    return "\n\n".join(parts) + "\n"


def latex_page(lead: Sequence[str], tables: Sequence[Table]) -> str:
    """A float for each table; the lead is comments above them."""
    floats = [
        "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{escape_latex(table.caption)}}}",
                latex(table) + r"\end{table}",
            ]
        )
        for table in tables
    ]
    return latex_comments(lead) + "\n\n".join(floats) + "\n"


def latex_comments(paragraphs: Sequence[str]) -> str:
    return "".join(f"% {' '.join(paragraph.split())}\n" for paragraph in paragraphs)


def percent(share: float | None, *, up: bool = False) -> str:
    """A share of images in percent, with one digit: rounded down, or up where it is an upper bound."""
    if share is None:
        return ""
    tenths = math.ceil(1000 * share - ROUNDING) if up else math.floor(1000 * share + ROUNDING)
    return f"{tenths / 10:.1f} %"
