"""The page's style sheet: light and dark, from a phone's width up."""

from __future__ import annotations

# Colours of text have a contrast of 4.5 or more on both grounds, those of lines 3 or more (WCAG AA); a test counts.
LIGHT = {
    "ground": "#ffffff",
    "panel": "#f5f7f9",
    "text": "#1c2128",
    "muted": "#57606a",
    "line": "#d0d7de",
    "link": "#0550ae",
    "pass": "#116329",
    "fail": "#b3151d",
    "error": "#7d4e00",
    "skip": "#57606a",
    "proof": "#fff3bf",
    "s0": "#0550ae",
    "s1": "#b35900",
    "s2": "#117a5a",
    "s3": "#a0348f",
    "s4": "#7a4b2a",
    "s5": "#4b5563",
}
DARK = {
    "ground": "#0f1318",
    "panel": "#181d24",
    "text": "#e6edf3",
    "muted": "#a3adb8",
    "line": "#3a424c",
    "link": "#79b8ff",
    "pass": "#56d364",
    "fail": "#ff8a82",
    "error": "#e3b341",
    "skip": "#a3adb8",
    "proof": "#4a3f10",
    "s0": "#79b8ff",
    "s1": "#ffab5e",
    "s2": "#4cd6a8",
    "s3": "#e79bdc",
    "s4": "#d6a98a",
    "s5": "#b6bec8",
}

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--text);font:1rem/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;overflow-wrap:anywhere}
main,header,footer{max-width:72rem;margin:0 auto;padding:0 1rem}
header{padding-top:1.5rem}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .5rem}
h2{font-size:1.25rem;margin:2.2rem 0 .7rem;padding-top:.7rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.5rem 0 .5rem}
h4{font-size:1rem;margin:1rem 0 .4rem}
a{color:var(--link)}
code,pre,.id{font-family:ui-monospace,"SFMono-Regular",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.875rem}
p{margin:.4rem 0}
.muted,.note,figcaption+.note{color:var(--muted)}
.note{font-size:.875rem}
.verdict{border-left:.4rem solid var(--of);background:var(--panel);padding:.7rem 1rem;margin:.8rem 0}
.verdict strong{color:var(--of);font-size:1.15rem}
.warning{border:1px solid var(--error);padding:.5rem 1rem;margin:.8rem 0;list-style-position:inside}
.pass{--of:var(--pass)}.fail{--of:var(--fail)}.error{--of:var(--error)}.skip{--of:var(--skip)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(6.5rem,1fr));gap:.6rem;margin:1rem 0;padding:0;list-style:none}
.tiles li{background:var(--panel);border-top:.2rem solid var(--of,var(--line));padding:.5rem .7rem}
.tiles b{display:block;white-space:nowrap;font-size:1.5rem;line-height:1.2;color:var(--of,var(--text))}
dl.facts{display:grid;grid-template-columns:minmax(7rem,max-content) minmax(0,1fr);gap:.25rem 1rem;margin:.5rem 0}
dl.facts dt{color:var(--muted)}
dl.facts dd{margin:0}
.badge{display:inline-block;min-width:4.2rem;color:var(--of);font-weight:600;white-space:nowrap}
details.check{border:1px solid var(--line);border-left:.25rem solid var(--of);margin:.45rem 0;background:var(--ground)}
details.check>summary{display:flex;flex-wrap:wrap;gap:.1rem .8rem;align-items:baseline;padding:.5rem .8rem;cursor:pointer}
details.check>summary:hover{background:var(--panel)}
details.check>summary .time{margin-left:auto;color:var(--muted);font-size:.875rem;white-space:nowrap}
details.check>summary .said{flex-basis:100%;color:var(--muted);font-size:.925rem}
details.check>.body{padding:.2rem .8rem .8rem;border-top:1px solid var(--line)}
summary:focus-visible,a:focus-visible,[tabindex]:focus-visible{outline:2px solid var(--link);outline-offset:2px}
.wide-content,pre{overflow-x:auto;max-width:100%}
pre{background:var(--panel);border:1px solid var(--line);padding:.6rem .8rem;margin:.4rem 0;max-height:32rem;overflow-y:auto;white-space:pre;overflow-wrap:normal}
pre.said-whole{white-space:pre-wrap;overflow-wrap:anywhere}
mark{background:var(--proof);color:var(--text)}
table{border-collapse:collapse;font-size:.925rem}
th,td{text-align:left;vertical-align:top;padding:.25rem .8rem .25rem 0;border-bottom:1px solid var(--line);overflow-wrap:normal}
td.long{min-width:14rem;overflow-wrap:anywhere}
thead th{color:var(--muted);font-weight:600}
ul.values{columns:16rem;margin:.3rem 0;padding-left:1.2rem}
ul.values li{break-inside:avoid}
.inner{border-left:2px solid var(--line);padding-left:.8rem;margin:.3rem 0}
figure.plot{margin:.8rem 0}
figcaption{font-weight:600}
.plot svg{display:block;max-width:45rem;width:100%;height:auto}
.plot svg.narrow{display:none;max-width:24rem}
.plot text{fill:var(--text);font-size:12px;font-family:inherit}
.plot .axis{fill:none;stroke:var(--muted)}
.plot .grid{fill:none;stroke:var(--line);stroke-width:.7}
.plot .run{fill:none;stroke:var(--of);stroke-width:1.8}
.plot .bar{fill:none;stroke:var(--of);stroke-width:1.2;opacity:.75}
.plot .mark{fill:var(--of);stroke:var(--of);stroke-width:1.4}
.s0{--of:var(--s0)}.s1{--of:var(--s1)}.s2{--of:var(--s2)}.s3{--of:var(--s3)}.s4{--of:var(--s4)}.s5{--of:var(--s5)}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;margin:.3rem 0;padding:0;list-style:none;font-size:.925rem}
.legend li{display:flex;align-items:center;gap:.4rem}
.plot svg.key{width:30px;height:12px;flex:none}
footer{padding-top:1.5rem;padding-bottom:2rem;color:var(--muted);font-size:.875rem}
@media(max-width:40rem){
h1{font-size:1.4rem}
dl.facts{grid-template-columns:minmax(0,1fr);gap:0}
dl.facts dd{margin:0 0 .4rem}
th[scope=row]{overflow-wrap:anywhere;min-width:6.5rem}
td.long{min-width:9rem}
.tiles{grid-template-columns:repeat(auto-fit,minmax(5.2rem,1fr))}
.tiles b{font-size:1.15rem;white-space:normal}
.plot svg.wide{display:none}
.plot svg.narrow{display:block}
}
@media print{pre{max-height:none;white-space:pre-wrap}}
""".strip()


def style_sheet() -> str:
    """The whole sheet."""
    return f":root{{{_values(LIGHT)}}}\n@media(prefers-color-scheme:dark){{:root{{{_values(DARK)}}}}}\n{_RULES}\n"


def _values(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())
