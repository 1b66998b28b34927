"""The look of the page: nothing is fetched; light or dark as the reader's system is."""

from __future__ import annotations

from pfedmma.system.series import COLOURS

_PAGE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --shade: #1b1f2433;
}
@media (prefers-color-scheme: dark) {
  :root { --page: #14181d; --ink: #e6e9ed; --soft: #9aa4af; --line: #343c46; --shade: #00000099; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
header, nav, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 16px; }
header { padding-top: 24px; }
h1 { margin: 0; font-size: 28px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 40px 0 12px; font-size: 21px; border-bottom: 1px solid var(--line); }
p { margin: 8px 0; overflow-wrap: anywhere; }
nav ul, .key { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 12px 0; padding: 0; list-style: none; }
a { color: var(--s0); }
footer { margin-top: 48px; padding-bottom: 24px; color: var(--soft); font-size: 14px; }
.about { color: var(--soft); font-size: 14px; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.numbers { margin: 8px 0; padding: 0; list-style: none; }
.numbers li { display: flex; flex-direction: column; padding: 10px 14px; border: 1px solid var(--line); border-radius: 6px; }
.numbers span { color: var(--soft); }
.numbers strong { font-size: 34px; line-height: 1.15; font-variant-numeric: tabular-nums; }
.numbers small { font-size: 13px; line-height: 1.45; }
/* A shadow at the side where a table goes on; the page's colour, which scrolls along, hides it at the end. */
.scroll { overflow-x: auto; background: linear-gradient(to right, var(--page) 30%, transparent) left / 40px 100% no-repeat local,
  linear-gradient(to left, var(--page) 30%, transparent) right / 40px 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / 14px 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / 14px 100% no-repeat scroll; }
.wider::before { content: "scroll sideways for more \\2192"; position: sticky; left: 0; color: var(--soft); font-size: 12px; }
th button { all: unset; cursor: pointer; }
th button:hover, th button:focus-visible { text-decoration: underline; }
th[aria-sort=descending] button::after { content: " \\25be"; }
th[aria-sort=ascending] button::after { content: " \\25b4"; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 10px 24px; margin: 12px 0; }
dl .long { grid-column: span 2; }
dt { color: var(--soft); font-size: 14px; }
dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px 4px 0; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
thead th { vertical-align: bottom; color: var(--soft); font-weight: 400; white-space: nowrap; }
th:first-child, .words { text-align: left; }
th, .words { overflow-wrap: break-word; }
tbody th, td { white-space: nowrap; }
tbody th { min-width: 5em; }
td.long, th.long { white-space: normal; min-width: 18em; }
.best { font-weight: 700; }
small { color: var(--soft); font-weight: 400; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 20px 28px; align-items: start; }
figure { margin: 16px 0; min-width: 0; }
.panels figure { margin: 0; }
figcaption { margin-bottom: 4px; font-size: 14px; color: var(--soft); overflow-wrap: anywhere; }
.key { font-size: 14px; }
.key li { display: flex; align-items: center; gap: 6px; overflow-wrap: anywhere; min-width: 0; }
.sample { flex: none; width: 34px; height: 12px; }
details { margin: 16px 0; }
summary { cursor: pointer; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 11.5px system-ui, sans-serif; fill: var(--ink); }
svg text.note { fill: var(--soft); paint-order: stroke; stroke: var(--page); stroke-width: 3px; }
.band { stroke: none; opacity: 0.16; }
.grid { stroke: var(--line); }
.axis, .zero { stroke: var(--soft); }
.line, .reference { fill: none; stroke-width: 2; }
.thin { fill: none; stroke: var(--soft); stroke-width: 1; opacity: 0.45; }
.thin:hover { stroke-width: 2.5; opacity: 1; }
.reference { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 1.5 3; }
.mark, .tip { stroke: transparent; stroke-width: 9; }
.tip { fill: transparent; }
rect.other { fill: var(--soft); }
.gain { --tone: var(--s0); }
.loss { --tone: var(--s1); }
rect.gain, rect.loss, .filled { fill: var(--tone); }
g.gain line, g.loss line { stroke: var(--tone); stroke-width: 2; }
.hollow { fill: var(--page); stroke: var(--tone); stroke-width: 1.5; }
@media (max-width: 640px) {
  nav ul { flex-wrap: nowrap; overflow-x: auto; white-space: nowrap; }
  .numbers { grid-template-columns: 1fr 1fr; gap: 8px; }
  .numbers li { padding: 8px 10px; }
  .numbers strong { font-size: 28px; }
}
@media print { details { display: block; } nav, .wider::before { display: none; } }
"""


def _colours(page: int) -> str:
    """The variables --s0 and on, for a white page (0) or a dark one (1)."""
    return " ".join(f"--s{i}: {pair[page]};" for i, pair in enumerate(COLOURS))


def _series() -> str:
    rule = ".line.sN { stroke: var(--sN); } .band.sN, path.mark.sN, rect.sN { fill: var(--sN); }\n"
    return "".join(rule.replace("sN", f"s{i}") for i in range(len(COLOURS)))


STYLE = f"""
:root {{ {_colours(0)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_colours(1)} }} }}
{_PAGE.strip()}
{_series()}"""
