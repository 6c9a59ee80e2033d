(() => {
  const narrow = matchMedia("(max-width: 900px)").matches;
  const toc = document.querySelector("details.toc");
  if (toc && narrow) toc.open = false;
  document.querySelectorAll(".toc a").forEach(link => link.addEventListener("click", () => { if (narrow) toc.open = false; }));
  const button = (text, act) => {
    const made = document.createElement("button");
    made.type = "button"; made.textContent = text;
    made.addEventListener("click", () => act(made));
    return made;
  };
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
  addEventListener("beforeprint", () => document.querySelectorAll("details.long").forEach(long => { long.open = true; }));
  const number = /^(?:[-+−]?[\d., ]+(?:e[-+]?\d+)?\s?%?|NaN|nan|None|[-–]?)$/;
  const worth = text => { const found = text.replace("−", "-").match(/^-?[\d.]+(e[-+]?\d+)?/); return found ? Number(found[0]) : NaN; };
  document.querySelectorAll("main table").forEach(table => {
    const [upper, lower] = table.tHead ? [...table.tHead.rows].slice(-2) : [];
    const named = lower ? [...lower.cells].filter(cell => cell.textContent.trim()) : [];
    if (named.length && named.length < lower.cells.length && named.every((cell, i) => lower.cells[i] === cell)) {
      named.forEach((cell, i) => { upper.cells[i].textContent = cell.textContent; });  // pandas gives the names of rows a line of their own
      lower.remove();
    }
    if (table.querySelector("[colspan], [rowspan]") || !table.tHead || !table.tHead.rows.length) return;
    const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, i) => {
      const column = rows.map(row => row.cells[i]).filter(Boolean);
      const data = column.filter(cell => cell.tagName === "TD");
      if (data.length && data.every(cell => number.test(cell.textContent.trim()))) [head, ...column].forEach(cell => cell.classList.add("number"));
      if (rows.length < 3 || table.tHead.rows.length > 1) return;
      const text = row => row.cells[i] ? row.cells[i].textContent.trim() : "";
      const sort = () => {
        const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        heads.forEach(other => other.setAttribute("aria-sort", other === head ? (sign > 0 ? "ascending" : "descending") : "none"));
        rows.sort((a, b) => {
          const x = worth(text(a)), y = worth(text(b));
          if (isNaN(x) || isNaN(y)) return isNaN(x) && isNaN(y) ? sign * text(a).localeCompare(text(b)) : isNaN(x) - isNaN(y);
          return sign * (x - y);
        });
        body.append(...rows);
      };
      head.setAttribute("aria-sort", "none"); head.tabIndex = 0;
      head.addEventListener("click", sort);
      head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
    });
    const long = table.closest("details.long");
    if (!long) return;
    const tools = document.createElement("div"), filter = document.createElement("input");
    tools.className = "tools"; filter.type = "search"; filter.placeholder = "Filter rows";
    filter.setAttribute("aria-label", "Filter rows");
    filter.addEventListener("input", () => rows.forEach(row => { row.hidden = !row.textContent.toLowerCase().includes(filter.value.toLowerCase()); }));
    const quoted = cell => `"${cell.textContent.trim().replaceAll('"', '""')}"`;
    tools.append(filter, button("Save as CSV", () => {
      const lines = [...table.rows].map(row => [...row.cells].map(quoted).join(","));
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
      link.download = "table.csv"; link.click();
    }));
    table.closest(".scroll").before(tools);
  });
  const tip = document.createElement("div");
  tip.className = "tip"; tip.hidden = true; document.body.append(tip);
  const drawing = source => {  // what a drawing holds is read as data: nothing of it comes into the page but text
    const [, kind, text] = source.match(/^data:image\/svg\+xml[^,]*?(;base64)?,(.*)$/s) || [];
    const bytes = kind && Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    return new DOMParser().parseFromString(kind ? new TextDecoder().decode(bytes) : decodeURIComponent(text || "<svg/>"), "text/xml").documentElement;
  };
  const tell = img => {
    let points, width;
    const show = event => {
      if (!points) {
        const svg = drawing(img.src);
        width = Number((svg.getAttribute("viewBox") || "").split(/[ ,]+/)[2]);
        points = [...svg.querySelectorAll("title")].map(title => [title, title.parentElement.querySelector("use")]).filter(([, mark]) => mark)
          .map(([title, mark]) => [title.textContent, mark.getAttribute("x"), mark.getAttribute("y")]);
      }
      const box = img.getBoundingClientRect(), scale = width / box.width;
      const far = ([, x, y]) => Math.hypot(x - (event.clientX - box.left) * scale, y - (event.clientY - box.top) * scale);
      const near = points.reduce((best, point) => far(point) < far(best) ? point : best, ["", 1e9, 1e9]);
      tip.hidden = !(far(near) < 14);
      tip.textContent = near[0];
      tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
      tip.style.top = `${Math.max(event.clientY - tip.offsetHeight - 10, 4)}px`;
    };
    img.addEventListener("pointermove", show);
    img.addEventListener("pointerdown", show);
    img.addEventListener("pointerleave", () => { tip.hidden = true; });
  };
  document.querySelectorAll("figure img").forEach(img => {
    const figure = img.parentElement;
    const fit = () => figure.classList.toggle("shrunk", img.naturalWidth > 1.15 * figure.clientWidth);
    const zoom = button("Enlarge", made => { made.textContent = figure.classList.toggle("full") ? "Back to the page" : "Enlarge"; });
    zoom.className = "zoom";
    addEventListener("keydown", event => { if (event.key === "Escape" && figure.classList.contains("full")) zoom.click(); });
    figure.after(zoom);
    if (img.complete) fit(); else img.addEventListener("load", fit);
    addEventListener("resize", fit);
    tell(img);
  });
})();
