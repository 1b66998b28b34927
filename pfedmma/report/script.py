"""What the page does beyond showing: tables that are sorted by a click, and a hint where one is wider than the window.

Without it, as in a viewer that runs no scripts, everything is there all the same.
"""

from __future__ import annotations

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent.trim();
    head.replaceChildren(button);
    button.onclick = () => {
      const down = head.getAttribute("aria-sort") === "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "ascending" : "descending");
      const key = (row) => row.cells[column].textContent.trim();
      const number = (text) => parseFloat(text.replace(/,/g, ""));
      const order = (a, b) => {
        const x = number(key(a)), y = number(key(b));
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || (down ? 1 : -1) * key(a).localeCompare(key(b));
        return (down ? 1 : -1) * (x - y);
      };
      body.append(...[...body.rows].sort(order));
    };
  });
}
const hint = () => {
  for (const box of document.querySelectorAll(".scroll")) box.classList.toggle("wider", box.scrollWidth > box.clientWidth + 1);
};
hint();
addEventListener("resize", hint);
for (const part of document.querySelectorAll("details")) part.addEventListener("toggle", hint);
"""
