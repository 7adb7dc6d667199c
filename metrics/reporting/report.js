"use strict";
// What the page gains where scripts run: samples chosen and sorted, tables sorted, pictures enlarged.
const articles = [...document.querySelectorAll("article.sample")];
const chosen = articles.filter((one) => one.closest("#best, #worst, #others"));
const table = document.querySelector("table.frames");
const [head, ...rows] = table ? table.rows : [];
const figures = head ? [...head.cells].slice(1) : [];
const homes = new Map(chosen.map((one) => [one, one.parentElement]));
const all = table ? table.closest("details").querySelector("summary").textContent.match(/\d+ frames/)[0] : "";
const verbs = [...articles, ...rows.map((row) => row.cells[0])].map((one) => one.dataset.verb);

function make(tag, options = {}, ...children) {
  const found = Object.assign(document.createElement(tag), options);
  found.append(...children);
  return found;
}

function number(text) {
  const plain = text.trim().replace("−", "-");
  return plain === "equal" || plain === "inf" ? Infinity : plain === "-inf" ? -Infinity : parseFloat(plain);
}

// What has no value stands last, whichever way the others are sorted.
function sorted(list, value, down) {
  const pairs = list.map((one) => [one, value(one)]);
  const lacks = (x) => Number.isNaN(x);
  pairs.sort(([, a], [, b]) => (lacks(a) || lacks(b) ? lacks(a) - lacks(b) : a === b ? 0 : (a < b) === down ? 1 : -1));
  return pairs.map(([one]) => one);
}

// The bar above the samples.
const verb = make("select", { id: "verb" });
const order = make("select", { id: "order" }, make("option", { value: "", textContent: "as chosen" }));
const way = make("select", { id: "way" }, make("option", { value: "1", textContent: "best first" }), make("option", { value: "", textContent: "worst first" }));
const count = make("output", { id: "shown" });
verb.append(make("option", { value: "", textContent: "all verbs" }), ...[...new Set(verbs)].filter(Boolean).sort().map((name) => make("option", { value: name, textContent: name })));
order.append(...figures.map((cell, place) => make("option", { value: place, textContent: cell.dataset.title })));
const together = make("section", { id: "sorted", hidden: true }, make("h2", { textContent: "Sorted" }), make("p", { className: "hint" }));
const bar = make("form", { id: "choose" }, make("label", { textContent: "Verb " }, verb), make("label", { textContent: "Order " }, order), way, count);
const first = chosen[0] && chosen[0].parentElement;

function arrange() {
  const place = order.value === "" ? -1 : Number(order.value);
  const up = place < 0 || figures[place].dataset.up === "1";
  const values = (one) => number(one.dataset.figures.split(" ")[place]);
  const list = place < 0 ? chosen : sorted(chosen, values, up === (way.value === "1"));
  for (const one of list) (place < 0 ? homes.get(one) : together).append(one);
  way.hidden = place < 0;
  together.hidden = place < 0;
  if (place >= 0) together.querySelector("p").textContent = `By ${figures[place].dataset.title}, ${way.selectedOptions[0].textContent}.`;
  for (const one of articles) one.hidden = verb.value !== "" && one.dataset.verb !== verb.value;
  for (const row of rows) row.hidden = verb.value !== "" && row.cells[0].dataset.verb !== verb.value;
  for (const section of new Set([...articles.map((one) => one.parentElement), ...homes.values()])) {
    if (section !== together) section.hidden = ![...section.querySelectorAll("article")].some((one) => !one.hidden);
  }
  count.textContent = `${chosen.filter((one) => !one.hidden).length} of ${chosen.length} with pictures`;
  if (table) say();
}

function say() {
  const by = head.querySelector("[aria-sort]"), left = rows.filter((row) => !row.hidden).length;
  table.closest("details").querySelector("summary").textContent = `${left} of ${all}${by ? `, by ${by.textContent}` : ", best first"}`;
}

if (first) {
  articles[0].parentElement.before(bar);
  first.before(together);
  bar.onchange = arrange;
  bar.onsubmit = (event) => event.preventDefault();
  arrange();
}

// Heads of the table of all frames sort it: the better first, then the other way round.
function sortTable(cell, place) {
  const up = place === 0 || cell.dataset.up === "1";
  const better = place === 0 ? "ascending" : up ? "descending" : "ascending";
  const other = better === "ascending" ? "descending" : "ascending";
  const now = cell.getAttribute("aria-sort") === better ? other : better;
  for (const one of head.cells) one.removeAttribute("aria-sort");
  cell.setAttribute("aria-sort", now);
  const value = place === 0 ? (row) => row.cells[0].textContent.toLowerCase() : (row) => number(row.cells[place].textContent);
  head.parentElement.append(...sorted(rows, value, now === "descending"));
  say();
}

[...(head ? head.cells : [])].forEach((cell, place) => {
  const button = make("button", { type: "button", textContent: place === 0 ? "Action" : cell.textContent, onclick: () => sortTable(cell, place) });
  cell.replaceChildren(button);
});

// Pictures are enlarged by a click; left and right go through a frame's pictures, up and down through frames.
const large = make("img");
const caption = make("p");
const box = make("dialog", { id: "large" }, large, caption);
const pictures = [...document.querySelectorAll(".images img")];
let now = null;
document.body.append(box);

function enlarge(picture) {
  now = picture;
  large.src = picture.src;
  large.alt = picture.alt;
  caption.textContent = picture.alt;
  if (!box.open) box.showModal();
}

function go(across, along) {
  const seen = [...document.querySelectorAll("article.sample")].filter((one) => !one.hidden && !one.parentElement.hidden);
  const article = now.closest("article"), near = [...article.querySelectorAll(".images img")];
  const next = seen[seen.indexOf(article) + along], place = near.indexOf(now) + across;
  const of = next ? [...next.querySelectorAll(".images img")] : [];
  enlarge(of[(place + of.length) % of.length] || now);
}

for (const picture of pictures) {
  picture.tabIndex = 0;
  picture.setAttribute("role", "button");
  picture.onclick = () => enlarge(picture);
  picture.onkeydown = (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); enlarge(picture); }
  };
}
box.onclick = () => box.close();
box.onclose = () => now.focus({ preventScroll: false });
box.onkeydown = (event) => {
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (way) { event.preventDefault(); go(...way); }
};
