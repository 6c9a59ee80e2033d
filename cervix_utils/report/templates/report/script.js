(() => {
  const narrow = matchMedia("(max-width: 900px)").matches;
  const toc = document.querySelector("details.toc");
  if (toc && narrow) toc.open = false;
  document.querySelectorAll(".toc a").forEach(link => link.addEventListener("click", () => { if (narrow) toc.open = false; }));
  const all = document.querySelector("button.all");
  const code = document.querySelectorAll("details.code");
  if (all && code.length) {
    all.hidden = false;
    all.addEventListener("click", () => {
      const open = all.getAttribute("aria-pressed") !== "true";
      all.setAttribute("aria-pressed", open);
      all.textContent = open ? "Hide all code" : "Show all code";
      code.forEach(cell => { cell.open = open; });
    });
  }
  const number = /^(?:[-+−]?[\d., ]+(?:e[-+]?\d+)?\s?%?|NaN|nan|None|[-–]?)$/;
  document.querySelectorAll(".page table").forEach(table => {
    if (table.querySelector("[colspan], [rowspan]")) return;
    const rows = [...table.rows];
    [...(rows[0]?.cells ?? [])].forEach((_, i) => {
      const column = rows.map(row => row.cells[i]).filter(Boolean);
      const data = column.filter(cell => cell.tagName === "TD");
      if (data.length && data.every(cell => number.test(cell.textContent.trim()))) column.forEach(cell => cell.classList.add("number"));
    });
  });
  document.querySelectorAll("figure img").forEach(img => {
    const figure = img.parentElement;
    const fit = () => figure.classList.toggle("shrunk", img.naturalWidth > 1.15 * figure.clientWidth);
    const zoom = document.createElement("button");
    zoom.type = "button"; zoom.className = "zoom"; zoom.textContent = "Enlarge";
    zoom.addEventListener("click", () => { zoom.textContent = figure.classList.toggle("full") ? "Fit to the page" : "Enlarge"; });
    figure.after(zoom);
    if (img.complete) fit(); else img.addEventListener("load", fit);
    addEventListener("resize", fit);
  });
})();
