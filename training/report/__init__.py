"""What a run found, for machines (report.json) and for people (report.html).

    figures.py    measures of every seed -> one tree of numbers: means, spreads, paired differences, the answer
    choices.py    what a recipe chose other than the default
    targets.py    what the recipe `synthetic` promises, whether it was reached, and if not, why
    page.py       the tree as one self-contained page: every number on it is a value of the tree
    sections/     its sections, in files by a reader's questions; pieces.py is what they are made of
    charts.py     the page's drawings, as inline SVG
    tables.py     tables of `ablate` in the same folder, as the report carries them
    again.py      the page once more, from report.json

Nothing here trains, scores or measures.
"""

from training.report.again import found_before, report_again
from training.report.figures import build_report
from training.report.page import render
from training.report.tables import tables_before
from training.report.write import write_report

__all__ = ["build_report", "found_before", "render", "report_again", "tables_before", "write_report"]
