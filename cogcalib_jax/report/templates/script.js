"use strict";
// The page reads without this script; it adds sorting, downloads of pictures and the questions.
const make = (tag, fields = {}, ...inside) => {
  const element = Object.assign(document.createElement(tag), fields);
  element.append(...inside);
  return element;
};
const number = (text) => parseFloat(text.replace(/,/g, ""));

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = make("button", { type: "button", textContent: head.textContent });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = (row) => row.cells[column].textContent;
      const compare = (a, b) => {
        const [x, y] = [number(text(a)), number(text(b))];
        if (isNaN(x) && isNaN(y)) return (down ? -1 : 1) * text(a).localeCompare(text(b));
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y); // what is no number stays last
        return (down ? -1 : 1) * (x - y);
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}

const FILTERS = {
  "wrong and at least 80 % sure": (said) => !said.right && said.confidence >= 0.8,
  "wrong": (said) => !said.right,
  "all": () => true,
  "right": (said) => said.right,
  "right and at most 50 % sure": (said) => said.right && said.confidence <= 0.5,
};

function browse(place) {
  const data = JSON.parse(place.querySelector("script").textContent);
  const select = (names, label) =>
    make("label", {}, `${label} `, make("select", {}, ...names.map((n) => new Option(n, n))));
  const method = select(Object.keys(data.answers), "Method");
  const filter = select(Object.keys(FILTERS), "Show");
  const search = make("input", { type: "search", placeholder: "Search the questions" });
  search.setAttribute("aria-label", "Search the questions");
  const order = select(["surest first", "least sure first", "order of the file"], "Order");
  const save = make("a", { className: "save", textContent: "CSV of these", download: "answers.csv" });
  const status = make("p", { className: "note" });
  status.setAttribute("role", "status");
  const body = make("tbody");
  const names = ["id", "question", "answer given", "right answer", "confidence"];
  const head = names.map((name) => make("th", { scope: "col", textContent: name }));
  const region = make("div", { className: "scroll words", tabIndex: 0 },
    make("table", {}, make("caption", { textContent: "Questions" }),
      make("thead", {}, make("tr", {}, ...head)), body));
  region.setAttribute("role", "region");
  region.setAttribute("aria-label", "Questions");
  const more = make("button", { type: "button", textContent: "Show 50 more" });
  let limit = 50;

  const chosen = () => {
    const words = search.value.toLowerCase();
    const keep = FILTERS[filter.lastChild.value];
    const rows = data.answers[method.lastChild.value]
      .map(([given, right, confidence], i) => ({ ...data.questions[i], given, right, confidence }))
      .filter((row) => keep(row) && `${row.id} ${row.text}`.toLowerCase().includes(words));
    const sign = { "surest first": -1, "least sure first": 1 }[order.lastChild.value] ?? 0;
    return sign ? rows.sort((a, b) => sign * (a.confidence - b.confidence)) : rows;
  };
  const draw = () => {
    const rows = chosen();
    const [n, all] = [rows, data.questions].map((list) => list.length.toLocaleString("en"));
    status.textContent = `${n} of ${all} questions`;
    body.replaceChildren(...rows.slice(0, limit).map((row) => make("tr", {},
      make("th", { scope: "row", textContent: row.id }),
      ...[row.text, `${row.given} (${row.right ? "right" : "wrong"})`, row.answer,
          `${(100 * row.confidence).toFixed(1)} %`].map((text, i) => {
        const cell = make("td", { textContent: text });
        cell.dataset.label = names[i + 1];
        if (i === 1) cell.className = row.right ? "right" : "wrong";
        return cell;
      }))));
    more.hidden = rows.length <= limit;
    const quoted = (value) => `"${String(value).replace(/"/g, '""')}"`;
    const lines = rows.map((r) => [r.id, r.text, r.given, r.answer, r.right, r.confidence]);
    const table = [["id", "question", "given", "answer", "right", "confidence"], ...lines];
    const content = table.map((line) => line.map(quoted).join(",")).join("\n");
    URL.revokeObjectURL(save.href);
    save.href = URL.createObjectURL(new Blob([content], { type: "text/csv" }));
  };
  for (const control of [method, filter, order, search])
    control.addEventListener("input", () => { limit = 50; draw(); });
  more.addEventListener("click", () => { limit += 50; draw(); });
  place.querySelector(".browse").append(
    make("div", { className: "tools" }, method, filter, order, search, save), status, region, more);
  place.querySelector(".browse").hidden = false;
  place.querySelector(".static").hidden = true;
  for (filter.lastChild.value of Object.keys(FILTERS)) if (chosen().length) break;
  draw();
}

document.querySelectorAll("table").forEach(sortable);
document.querySelectorAll("figure").forEach((figure) => {
  const link = figure.querySelector(".save");
  link.href = figure.querySelector("img").src;
  link.hidden = false;
});
document.querySelectorAll(".questions").forEach(browse);
