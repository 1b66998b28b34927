"""The look of the page: nothing is fetched; light or dark as the reader's system is; colours after Okabe and Ito."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4;
  --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #cc79a7; --s4: #e69f00; --s5: #56b4e9; --s6: #1b1f24;
}
@media (prefers-color-scheme: dark) {
  :root { --page: #14181d; --ink: #e6e9ed; --soft: #9aa4af; --line: #343c46; --s0: #2b8fcb; --s6: #e6e9ed; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
header, nav, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 16px; }
header { padding-top: 24px; }
h1 { margin: 0; font-size: 28px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 40px 0 12px; font-size: 21px; border-bottom: 1px solid var(--line); }
p { margin: 8px 0; overflow-wrap: anywhere; }
nav ul, .key { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 12px 0; padding: 0; list-style: none; }
nav a { color: var(--s0); }
footer { margin-top: 48px; padding-bottom: 24px; color: var(--soft); font-size: 14px; }
.scroll { overflow-x: auto; }
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
.grid { stroke: var(--line); }
.axis, .zero { stroke: var(--soft); }
.line, .reference { fill: none; stroke-width: 2; }
.reference { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 1.5 3; }
.mark, .tip { stroke: transparent; stroke-width: 9; }
.tip { fill: transparent; }
.line.s0 { stroke: var(--s0); } .line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); } .line.s3 { stroke: var(--s3); }
.line.s4 { stroke: var(--s4); } .line.s5 { stroke: var(--s5); } .line.s6 { stroke: var(--s6); }
path.mark.s0, rect.s0 { fill: var(--s0); } path.mark.s1, rect.s1 { fill: var(--s1); } path.mark.s2, rect.s2 { fill: var(--s2); }
path.mark.s3, rect.s3 { fill: var(--s3); } path.mark.s4, rect.s4 { fill: var(--s4); } path.mark.s5, rect.s5 { fill: var(--s5); }
path.mark.s6, rect.s6 { fill: var(--s6); }
rect.other { fill: var(--soft); }
.gain { --tone: var(--s0); }
.loss { --tone: var(--s1); }
rect.gain, rect.loss, .filled { fill: var(--tone); }
g.gain line, g.loss line { stroke: var(--tone); stroke-width: 2; }
.hollow { fill: var(--page); stroke: var(--tone); stroke-width: 1.5; }
@media print { details { display: block; } nav { display: none; } }
"""
