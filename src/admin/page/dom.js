// Elements, tables and formats. Text is always set as text, never as markup: clients choose their names.

export const $ = (id) => document.getElementById(id);

/** Makes an element with properties and children. */
export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** Sets the text of an element if it has changed, so that a selection survives. */
export function setText(node, text) {
  const shown = String(text ?? "");
  if (node.textContent !== shown) node.textContent = shown;
}

export function setTone(node, tone) {
  if (node.dataset.tone !== tone) node.dataset.tone = tone;
}

/**
 * Shows one row per item and keeps the elements of rows that stay, so that focus and selection do too.
 * A cell is a text, or an object with `text`, `kind` (a class), `tone`, `title` and `action`.
 */
export function showRows(body, items, keyOf, cellsOf, empty = "none") {
  const known = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const wanted = items.map((item) => {
    const key = keyOf(item);
    const row = known.get(key) ?? element("tr");
    row.dataset.key = key;
    showCells(row, cellsOf(item));
    return row;
  });
  if (wanted.length === 0) {
    const columns = body.parentElement.tHead.rows[0]?.cells.length ?? 1;
    const row = known.get("") ?? element("tr", {}, element("td", { className: "empty", colSpan: columns }));
    row.dataset.key = "";
    setText(row.cells[0], empty);
    wanted.push(row);
  }
  const isSame = wanted.length === body.rows.length && wanted.every((row, index) => body.rows[index] === row);
  if (!isSame) body.replaceChildren(...wanted);
}

function showCells(row, cells) {
  cells.forEach((given, index) => {
    const cell = typeof given === "object" ? given : { text: given };
    let node = row.cells[index];
    if (!node) {
      node = element(index === 0 ? "th" : "td");
      if (index === 0) node.scope = "row";
      if (cell.action) node.append(element("button", { type: "button", className: "link" }));
      row.append(node);
    }
    const className = cell.kind ?? "";
    if (node.className !== className) node.className = className;
    setTone(node, cell.tone ?? "");
    if ((cell.title ?? "") !== node.title) node.title = cell.title ?? "";
    const target = node.querySelector("button") ?? node;
    if (cell.action) target.onclick = cell.action;
    setText(target, cell.text);
  });
}

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const TENTHS = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

export function count(value) {
  return WHOLE.format(value);
}

export function rate(value) {
  return value > 0 && value < 100 ? TENTHS.format(value) : WHOLE.format(value);
}

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, value)) / 10));
  const scaled = value / 1024 ** power;
  return `${power === 0 || scaled >= 100 ? WHOLE.format(scaled) : TENTHS.format(scaled)} ${units[power]}`;
}

export function duration(seconds) {
  if (seconds < 1) return seconds > 0 ? `${Math.max(1, Math.round(seconds * 1000))} ms` : "0 s";
  if (seconds < 60) return `${TENTHS.format(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} m ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} m` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function plural(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}
