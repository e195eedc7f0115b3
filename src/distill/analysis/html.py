"""A report as one HTML file: no script, nothing from elsewhere, made to be printed."""

from html import escape

from distill.analysis.page import Cell, Grid, Page, Text

WIDE = 7  # columns of numbers from which a page is laid on its side

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem; background: #fff; color: #1a1a1a;
  font: 15px/1.45 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 1rem; }
h2 { font-size: 1.1rem; margin: 1.8rem 0 .6rem; }
p, li { max-width: 60rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
thead { display: table-header-group; }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: top; }
th { font-weight: 600; vertical-align: bottom; }
th.label, td.label { text-align: left; }
td { white-space: nowrap; }
td.label { white-space: normal; }
td.label:first-child { font-weight: 600; white-space: nowrap; }
thead tr { border-top: 2px solid #1a1a1a; border-bottom: 1px solid #1a1a1a; }
tbody tr { border-bottom: 1px solid #ddd; break-inside: avoid; }
tbody:last-child tr:last-child { border-bottom: 2px solid #1a1a1a; }
tr.band td { text-align: left; font-weight: 600; background: #f0f0f0; border-top: 1px solid #1a1a1a; }
.ours { font-weight: 600; }
.last, .paper, .nothing { color: #555; }
sup { line-height: 0; font-size: .72em; }
sup a, .notes a { color: inherit; text-decoration: none; }
ol.notes { padding-left: 2rem; }
pre { background: #f6f6f6; border: 1px solid #ddd; padding: .7rem; font-size: .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
@media print {
  body { margin: 0; max-width: none; padding: 0; font-size: 9pt; }
  table { font-size: 7.6pt; }
  th, td { padding: 1.2pt 3.5pt; }
  .scroll { overflow: visible; }
  h2 { break-after: avoid; }
  pre { font-size: 7pt; }
}
""".strip()


def html(page: Page) -> str:
    """The same words as `page.markdown`, and the same numbers."""
    widest = max((len(grid.columns) - grid.labels for grid in page.grids), default=0)
    side = "landscape" if widest >= WIDE else "portrait"
    title = page.title or "Results"
    body = [f"<h1>{escape(title)}</h1>"]
    body += [_grid(grid) for grid in page.grids]
    body += [f"<p>{escape(paragraph)}</p>" for paragraph in page.legend]
    if page.notes:
        items = (f'<li id="note{number}">{escape(note)}</li>' for number, note in enumerate(page.notes, start=1))
        body.append('<ol class="notes">\n' + "\n".join(items) + "\n</ol>")
    if page.remarks:
        body.append("<ul>\n" + "\n".join(f"<li>{escape(remark)}</li>" for remark in page.remarks) + "\n</ul>")
    if page.commands:
        body.append(f"<h2>{escape(page.commands_title)}</h2>")
        body.append("<pre>" + escape("\n".join(page.commands)) + "</pre>")
    paper = f"@page {{ margin: 12mm; size: {side}; }}"
    head = f'<meta charset="utf-8">\n<title>{escape(title)}</title>\n<style>\n{paper}'
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n{STYLE}\n</style>\n</head>\n<body>\n'
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _grid(grid: Grid) -> str:
    heads = "".join(f"<th{_label(place, grid)}>{_heading(column)}</th>" for place, column in enumerate(grid.columns))
    lines = [f"<h2>{escape(grid.title)}</h2>"] if grid.title else []
    lines += ['<div class="scroll">', "<table>", f"<thead><tr>{heads}</tr></thead>"]
    for band in grid.bands:
        lines.append("<tbody>")
        if band.title:
            lines.append(f'<tr class="band"><td colspan="{len(grid.columns)}">{escape(band.title)}</td></tr>')
        for row in band.rows:
            cells = "".join(f"<td{_label(place, grid)}>{_cell(cell)}</td>" for place, cell in enumerate(row))
            lines.append(f"<tr>{cells}</tr>")
        lines.append("</tbody>")
    lines += ["</table>", "</div>", *(f"<p>{escape(sentence)}</p>" for sentence in grid.below)]
    return "\n".join(lines)


def _label(place: int, grid: Grid) -> str:
    return ' class="label"' if place < grid.labels else ""


def _heading(text: str) -> str:
    """A pair in two lines, teacher above student."""
    return escape(text).replace(" → ", " →<br>")


def _cell(cell: Cell) -> str:
    if len(cell) == 1 and not cell[0].kind and not cell[0].notes:
        return escape(cell[0].text)
    return "".join(_line(line) for line in cell)


def _line(line: Text) -> str:
    refs = ", ".join(f'<a href="#note{number}">{number}</a>' for number in line.notes)
    kind = f' class="{line.kind}"' if line.kind else ""
    return f"<div{kind}>{escape(line.text)}{f'<sup>{refs}</sup>' if refs else ''}</div>"
