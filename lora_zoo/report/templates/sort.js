"use strict";
for (const table of document.querySelectorAll(".table table, table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, i) => {
    const text = row.cells[i].innerText.trim(), number = parseFloat(text.replaceAll(",", ""));
    return Number.isNaN(number) ? text : number;
  };
  const ordered = (a, b) => typeof a === typeof b ? (typeof a === "number" ? a - b : a.localeCompare(b)) : 0;
  const repeat = () => [...body.rows].reduce((above, row) => { // a header that stands for several rows
    for (let i = 0; i < row.cells.length && row.cells[i].matches("th:empty"); i++)
      row.cells[i].textContent = above.cells[i].textContent;
    return row;
  });
  for (const [i, head] of body.rows.length > 1 ? heads.entries() : []) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      repeat();
      const sign = head.ariaSort === "descending" ? 1 : -1; // the greatest first, then the least
      heads.forEach((each) => { each.ariaSort = each === head ? (sign < 0 ? "descending" : "ascending") : null; });
      const rows = [...body.rows].map((row) => [key(row, i), row]);
      const last = ([value]) => typeof value === "string" && rows.some(([other]) => typeof other === "number");
      rows.sort((a, b) => last(a) - last(b) || sign * ordered(a[0], b[0]));
      body.append(...rows.map(([, row]) => row));
    });
  }
}
