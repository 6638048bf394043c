"""The page's looks: one style sheet, light and dark, for phones, desks and paper. Colours are Okabe and Ito's (2008), which every common
colour vision tells apart; in the dark the two darkest are lightened."""

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--quiet:#5a636e;--rule:#d5dae0;--paper:#fff;--panel:#f5f7f9;--shade:.3;
--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b8578c;--c4:#e69f00;--c5:#56b4e9;--c6:#8a8a8a;--c7:#b5a800;--good:#00694d;--bad:#b34700}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--quiet:#a3abb5;--rule:#3a4149;--paper:#14171a;--panel:#1d2126;--shade:.42;
--c0:#4da3e0;--c1:#f08040;--c2:#2fbf94;--c3:#dd8fb8;--c4:#e69f00;--c5:#7cc8f5;--c6:#9a9a9a;--c7:#f0e442;--good:#2fbf94;--bad:#f08040}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;
font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
header,main,footer{max-width:1176px;margin:0 auto;padding:0 16px}
header{padding-top:32px}
h1{font-size:1.15rem;font-weight:600;margin:0;color:var(--quiet)}
h2{font-size:1.25rem;margin:0 0 4px;line-height:1.3}
.score{font-size:clamp(2.6rem,11vw,4.2rem);line-height:1.1;font-weight:700;letter-spacing:-.02em;margin:4px 0 0}
.score small{font-size:1rem;font-weight:400;letter-spacing:0;color:var(--quiet);margin-left:.5ch;white-space:nowrap}
section{border-top:1px solid var(--rule);padding:24px 0 28px}
p{margin:0 0 12px;max-width:74ch}.note,.absent,footer,figcaption span{color:var(--quiet);font-size:.875rem}
.absent{border-left:3px solid var(--rule);padding-left:10px}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;padding:12px 0 20px;font-size:.875rem}
a{color:var(--c0)}
dl.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,168px),1fr));gap:12px 20px;margin:20px 0 4px}
dl.facts div{border-left:3px solid var(--rule);padding-left:10px}
dt{color:var(--quiet);font-size:.8125rem}dd{margin:0;font-weight:600}dd small{display:block;font-weight:400;color:var(--quiet);font-size:.8125rem}
.pass{color:var(--good)}.fail{color:var(--bad)}.unknown{color:var(--quiet)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:0 28px;align-items:start;margin:12px 0 0}
figure{margin:0 0 24px;max-width:480px;break-inside:avoid;display:grid;grid-row:span 3;grid-template-rows:subgrid;row-gap:0}
.charts.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))}
figcaption{margin-bottom:6px;line-height:1.35}figcaption b{display:block;font-size:.9375rem}figcaption span{display:block}
figure>svg{display:block;width:100%;height:auto;font-size:11px;font-family:inherit;overflow:visible}
svg text{fill:var(--ink)}svg .quiet{fill:var(--quiet)}svg .bold{font-weight:600}.mid{text-anchor:middle}.end{text-anchor:end}
.halo{paint-order:stroke;stroke:var(--paper);stroke-width:4px;stroke-linejoin:round}
.grid{stroke:var(--rule);stroke-width:.7;fill:none}.axis{stroke:var(--quiet);fill:none}
.mark{stroke:var(--ink);stroke-width:1;stroke-dasharray:2 3;fill:none}
.line{fill:none;stroke:var(--c);stroke-width:1.8;stroke-linejoin:round}.line.faint{stroke-width:1;opacity:.35}
.dot{fill:var(--c)}.ring{fill:none;stroke:var(--c);stroke-width:1.6}.bar{fill:var(--c)}
.line.c1{stroke-dasharray:7 2}.line.c2{stroke-dasharray:2 2}.line.c3{stroke-dasharray:7 2 2 2}.line.c4{stroke-dasharray:4 2}
.area{fill:color-mix(in srgb,var(--c) calc(var(--shade)*100%),var(--paper));stroke:var(--paper);stroke-width:1}
.cell{outline:none}.tip{visibility:hidden}.cell text{pointer-events:none}
.cell:hover>.area,.cell:focus>.area{fill:color-mix(in srgb,var(--c) 70%,var(--paper))}
.cell:hover>.tip,svg:not(:has(.cell:hover)) .cell:focus>.tip{visibility:visible}
svg:has(.cell:hover) .hint,svg:has(.cell:focus) .hint{visibility:hidden}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}.c5{--c:var(--c5)}.c6{--c:var(--c6)}.c7{--c:var(--c7)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 14px;margin:6px 0 0;padding:0;font-size:.8125rem;color:var(--quiet)}
.key{display:inline-block;width:12px;height:12px;border-radius:2px;background:var(--c);margin-right:5px;vertical-align:-1px}
details{margin:12px 0;border:1px solid var(--rule);border-radius:6px;background:var(--panel)}
summary{cursor:pointer;padding:9px 12px;font-weight:600;font-size:.9375rem}
.scroll{overflow-x:auto;max-height:560px;overflow-y:auto;border-top:1px solid var(--rule)}.open.scroll{border:1px solid var(--rule);border-radius:6px;max-height:none}
table{border-collapse:collapse;width:100%;font-size:.8125rem;line-height:1.4}
th,td{padding:5px 10px;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule);white-space:nowrap;overflow-wrap:normal}
thead th{position:sticky;top:0;background:var(--panel);color:var(--quiet);font-weight:600}
td.n,th.n{text-align:right}td.long{white-space:normal;min-width:260px;overflow-wrap:anywhere}
.checks{list-style:none;margin:12px 0 0;padding:0;display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:0 28px}
.checks li{border-top:1px solid var(--rule);padding:8px 0 8px 58px;position:relative;font-size:.875rem;break-inside:avoid}
.checks b{display:block;font-size:.9375rem}.checks i{position:absolute;left:0;top:8px;font-style:normal;font-weight:600}
.checks span{color:var(--quiet)}
footer{border-top:1px solid var(--rule);padding-top:16px;padding-bottom:40px}
:focus-visible{outline:2px solid var(--c0);outline-offset:2px}
@media print{nav,.hint{display:none}.scroll{max-height:none;overflow:visible}body{font-size:11pt}section{break-inside:auto}th,td{white-space:normal}
details:not([open])>*{display:none}}
"""
