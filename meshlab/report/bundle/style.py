"""How ``index.html`` looks: two sets of colours, one chosen by the browser. Every colour has a word beside it."""

STYLE = """
:root {
  --ink: #1c2024; --soft: #5c6670; --paper: #fcfcfa; --panel: #f2f3f0; --line: #d9dcd6;
  --good: #1a6b3c; --good-paper: #e3f1e6; --bad: #a31621; --bad-paper: #fbe6e6;
  --odd: #7a5200; --odd-paper: #faf0d8; --link: #1f4e9c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e6e3; --soft: #9aa3ab; --paper: #15181b; --panel: #1e2226; --line: #343a40;
    --good: #7fd19a; --good-paper: #17301f; --bad: #ff9c9c; --bad-paper: #43191c;
    --odd: #ecc56f; --odd-paper: #382c10; --link: #93b8ff;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: .95rem; margin: 1rem 0 .35rem; }
p { margin: .35rem 0; }
a { color: var(--link); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .75rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
code, pre, table { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .82rem; }
code { overflow-wrap: anywhere; }
pre {
  background: var(--panel); border: 1px solid var(--line); border-radius: 6px; margin: .2rem 0 .6rem;
  padding: .6rem .75rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere;
}
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; }
.matrix th, .matrix td { border: 1px solid var(--line); }
.matrix td { padding: .15rem; text-align: center; vertical-align: middle; }
.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; }
.matrix thead th { vertical-align: bottom; }
.matrix tbody th { white-space: nowrap; font-weight: 600; }
.matrix td > * { display: block; padding: .1rem .4rem; border-radius: 3px; text-decoration: none; white-space: nowrap; }
.none { background: repeating-linear-gradient(135deg, transparent 0 6px, var(--panel) 6px 12px); }
.allow { color: var(--good); background: var(--good-paper); }
.deny { color: var(--ink); background: var(--panel); }
.mixed, .unclear { color: var(--odd); background: var(--odd-paper); }
.matrix .wrong { color: var(--bad); background: var(--bad-paper); outline: 2px solid var(--bad); font-weight: 700; }
.matrix tbody th { position: sticky; left: 0; background: var(--paper); }
.matrix td > * + * { margin-top: 4px; }
.matrix small { display: block; }
.badge { font: 600 .78rem/1.6 system-ui, sans-serif; padding: .05rem .5rem; border-radius: 999px; white-space: nowrap; }
h1 .badge { font-size: .9rem; vertical-align: .2em; }
.held { color: var(--good); background: var(--good-paper); }
.failed { color: var(--bad); background: var(--bad-paper); }
.cannot-tell, .cannot-run { color: var(--odd); background: var(--odd-paper); }
details { border: 1px solid var(--line); border-radius: 8px; padding: .5rem .9rem; margin: .6rem 0; }
.story:target { scroll-margin-top: 4rem; }
summary { cursor: pointer; font-weight: 600; overflow-wrap: anywhere; }
.program { color: var(--soft); font-size: .85rem; margin: .4rem 0 0; }
.note { border-left: 3px solid var(--bad); padding-left: .75rem; }
"""
