"""How a report looks and the few lines that it runs. No address of anything else stands in it."""

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --surface: #f4f6f8; --ink: #171b21; --muted: #555f6b; --line: #d5dbe2;
  --link: #0b5cad; --first: #0072b2; --second: #c24e00; --warn: #7a4b00; --warn-paper: #fff5df;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12161b; --surface: #1b2129; --ink: #e9edf1; --muted: #a7b1bd; --line: #36404b;
    --link: #7ab8f5; --first: #56b4e9; --second: #f08a4b; --warn: #f3cd84; --warn-paper: #33290f;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body {
  margin: 0; padding: 0 16px 64px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
}
body > * { max-width: 1080px; margin-left: auto; margin-right: auto; }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.5rem, 5vw, 2.1rem); margin: 40px 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 1.3rem; margin: 56px 0 4px; }
h3 { font-size: 1rem; margin: 24px 0 8px; }
p { margin: 0 0 12px; max-width: 75ch; overflow-wrap: anywhere; }
a { color: var(--link); }
a:focus-visible, button:focus-visible, summary:focus-visible, .scrolled:focus-visible {
  outline: 2px solid var(--link); outline-offset: 2px;
}
small, .note, figcaption, dt { color: var(--muted); }
small, figcaption { font-size: 0.8125rem; line-height: 1.35; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; font-size: 0.875em; }
.lead { font-size: 1.0625rem; color: var(--muted); }
.lead b { color: var(--ink); font-weight: 600; }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 18px; list-style: none; margin: 16px 0 0; padding: 0; }
nav a { display: inline-block; padding: 4px 0; }
.warnings { list-style: none; margin: 20px 0 0; padding: 0; }
.warnings li {
  margin: 0 0 8px; padding: 10px 14px; border-left: 4px solid var(--second); border-radius: 4px;
  background: var(--warn-paper); color: var(--warn); overflow-wrap: anywhere;
}
table + .note { margin-top: 12px; }
.absent { padding: 12px 14px; border: 1px dashed var(--line); border-radius: 6px; color: var(--muted); }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }

table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 12px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--muted); font-size: 0.8125rem; font-weight: 600; white-space: nowrap; vertical-align: bottom; }
thead th small { display: block; font-weight: 400; }
tbody th { font-weight: 600; }
tbody th small { display: block; font-weight: 400; max-width: 80ch; }
.number { text-align: right; white-space: nowrap; }
.measures .number { font-size: 1.125rem; font-weight: 600; line-height: 1.35; }
.measures .number small { display: block; font-weight: 400; }
.measures td:last-child { white-space: nowrap; color: var(--muted); }
.measures thead th:nth-child(2), .classes thead th:not(:first-child) { text-align: right; }
.sets { min-width: 560px; }
.sets thead th:not(:first-child):not(:last-child), .pairs thead th:nth-child(3), .pairs thead th:nth-child(4) {
  text-align: right;
}
.pairs { min-width: 560px; }
.pairs thead th:nth-child(2), .pairs thead th:last-child { text-align: left; }
.best {
  display: inline-block; margin-top: 3px; padding: 1px 7px; border-radius: 9px; background: var(--first);
  color: var(--paper); font-size: 0.75rem; font-weight: 600;
}
.classes thead button { font: inherit; color: inherit; background: none; border: 0; padding: 2px 0; cursor: pointer; }
.classes thead button::after { content: " \\2195"; opacity: 0.7; }
.classes thead [aria-sort=ascending] button::after { content: " \\2191"; opacity: 1; }
.classes thead [aria-sort=descending] button::after { content: " \\2193"; opacity: 1; }
.classes thead [aria-sort] button { color: var(--ink); }
.scrolled { position: relative; overflow-x: auto; }
.scrolled th:first-child {
  position: sticky; left: 0; min-width: 104px; background: var(--paper); overflow-wrap: anywhere;
}
.protocol th, .protocol td { padding-top: 5px; padding-bottom: 5px; font-size: 0.9375rem; }
.protocol th { width: 34%; overflow-wrap: anywhere; font-weight: 400; color: var(--muted); }
.protocol td { overflow-wrap: anywhere; }

@media (prefers-color-scheme: dark) { svg image { filter: brightness(1.4); } }

figure { margin: 0; }
img { display: block; width: 100%; height: auto; border-radius: 3px; background: var(--surface); }
img.exact { image-rendering: pixelated; }
.tiles {
  --tile: 52px; display: grid; grid-template-columns: repeat(auto-fill, minmax(var(--tile), 1fr)); gap: 6px;
  list-style: none; margin: 0; padding: 0;
}
.tiles:has(img:not(.exact)) { --tile: 100px; }
.tiles.scored { grid-template-columns: repeat(8, minmax(0, 1fr)); gap: 14px 10px; }
.tiles.scored figcaption { margin-top: 4px; }
.byclass { display: grid; grid-template-columns: minmax(84px, 132px) 1fr; gap: 10px 14px; margin: 16px 0 0; }
.byclass dt { font-size: 0.875rem; line-height: 1.25; align-self: center; overflow-wrap: anywhere; }
.byclass dd { margin: 0; min-width: 0; }
.byclass .tiles { grid-template-columns: repeat(10, minmax(0, 1fr)); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 16px; margin: 16px 0 0; }
.card { padding: 12px; border: 1px solid var(--line); border-radius: 8px; background: var(--surface); }
.card > figcaption { margin-top: 8px; overflow-wrap: anywhere; }
.four { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 8px; }
.four > :first-child img { box-shadow: 0 0 0 2px var(--surface), 0 0 0 4px var(--first); }
.unseen-picture { aspect-ratio: 1; border: 1px dashed var(--line); border-radius: 3px; }
.four figcaption { margin-top: 5px; }
.four > :first-child figcaption { color: var(--first); font-weight: 600; }
.unreadable { display: block; font-size: 0.75rem; color: var(--muted); overflow-wrap: anywhere; }
.panels {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 24px; margin: 16px 0 0;
}
svg { display: block; width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt; }
.plot { max-width: 600px; margin: 16px 0 0; }
details { margin: 12px 0 0; }
summary { cursor: pointer; padding: 6px 0; color: var(--link); }
footer {
  margin-top: 56px; padding-top: 16px; border-top: 1px solid var(--line); color: var(--muted); font-size: 0.875rem;
}

@media (max-width: 640px) {
  th, td { padding: 8px 6px; }
  .measures .number small { white-space: normal; }
  .measures .word { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .tiles.scored { grid-template-columns: repeat(4, minmax(0, 1fr)); }
  .tiles:has(img:not(.exact)) { --tile: 84px; }
  .byclass { grid-template-columns: 1fr; gap: 4px; }
  .byclass .tiles { grid-template-columns: repeat(5, minmax(0, 1fr)); }
  .byclass dt { margin-top: 10px; }
  .classes { font-size: 0.875rem; }
}
@media print {
  body { padding: 0; } nav { display: none; } .card, figure { break-inside: avoid; }
}
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      const value = row => row.cells[column].dataset.value;
      const numeric = rows.some(row => value(row) !== undefined);
      rows.sort((a, b) => {
        const [first, second] = [a, b].map(row => row.cells[column].textContent);
        if (!numeric) return sign * first.localeCompare(second, "en", {numeric: true});
        const [x, y] = [value(a), value(b)];
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        return sign * (x - y);
      });
      table.tBodies[0].append(...rows);
    });
  });
}
"""
