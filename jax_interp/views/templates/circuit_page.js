// The graph of a circuit. Every text enters the page as a text node, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const canvas = document.getElementById("graph"), side = document.getElementById("side");
const slider = document.getElementById("size"), count = document.getElementById("count");
const WIDTH = 1000, STEP = 74, BOX = {w: 54, h: 24};
const place = new Map(), boxes = new Map();
let lines = [];

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function layOut() {
  const height = data.rows.length * STEP;
  canvas.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
  data.rows.forEach((row, i) => row.forEach((name, j) => {
    place.set(name, {x: (WIDTH * (j + 1)) / (row.length + 1), y: height - STEP / 2 - i * STEP});
  }));
}

function curve(from, to, shift) {
  const a = {x: from.x, y: from.y - BOX.h / 2}, b = {x: to.x + shift, y: to.y + BOX.h / 2}, half = (a.y - b.y) / 2;
  return `M${a.x} ${a.y} C${a.x} ${a.y - half} ${b.x} ${b.y + half} ${b.x} ${b.y}`;
}

function nameOf(edge) { return `${edge[0]} → ${edge[1]}${edge[2] ? ` (${edge[2]})` : ""}`; }

function draw() {
  const n = Number(slider.value), shown = data.edges.slice(0, n);
  count.textContent = `${n} of ${data.edges.length}`;
  const largest = Math.max(...shown.map((edge) => Math.abs(edge[3])), 1e-30);
  canvas.replaceChildren();
  boxes.clear();
  const used = new Set(shown.flatMap((edge) => [edge[0], edge[1]]));
  lines = [...shown].reverse().map((edge) => {
    const shift = {q: -14, k: 0, v: 14}[edge[2]] ?? 0;
    const width = 0.6 + 5 * Math.sqrt(Math.abs(edge[3]) / largest);
    const line = svg("path", {class: edge[3] < 0 ? "edge minus" : "edge", d: curve(place.get(edge[0]), place.get(edge[1]), shift), "stroke-width": width.toFixed(2), "stroke-opacity": 0.65});
    const title = svg("title", {});
    title.textContent = `${nameOf(edge)}: ${edge[3].toPrecision(4)}`;
    line.append(title);
    line.addEventListener("mouseenter", () => tell(nameOf(edge), [edge]));
    canvas.append(line);
    return {edge, line};
  });
  for (const [name, at] of place) {
    const box = svg("g", {class: used.has(name) ? "node" : "node out", tabindex: used.has(name) ? 0 : -1});
    box.append(svg("rect", {x: at.x - BOX.w / 2, y: at.y - BOX.h / 2, width: BOX.w, height: BOX.h}));
    const text = svg("text", {x: at.x, y: at.y});
    text.textContent = name;
    box.append(text);
    for (const event of ["mouseenter", "focus"]) box.addEventListener(event, () => light(name, shown));
    for (const event of ["mouseleave", "blur"]) box.addEventListener(event, dark);
    canvas.append(box);
    boxes.set(name, box);
  }
}

function light(name, shown) {
  for (const {edge, line} of lines) line.classList.toggle("dim", edge[0] !== name && edge[1] !== name);
  for (const [other, box] of boxes) box.classList.toggle("on", other === name);
  tell(name, shown.filter((edge) => edge[0] === name || edge[1] === name));
}

function dark() {
  for (const {line} of lines) line.classList.remove("dim");
  for (const box of boxes.values()) box.classList.remove("on");
}

function tell(heading, edges) {
  const table = document.createElement("table");
  for (const edge of [...edges].sort((a, b) => Math.abs(b[3]) - Math.abs(a[3]))) {
    const row = table.insertRow();
    row.insertCell().textContent = nameOf(edge);
    const cell = row.insertCell();
    cell.textContent = edge[3].toPrecision(4);
    cell.className = edge[3] < 0 ? "minus-text" : "plus-text";
  }
  const title = document.createElement("h3");
  title.textContent = `${heading}: ${edges.length} edge${edges.length === 1 ? "" : "s"}`;
  side.replaceChildren(title, table);
}

function show() {
  draw();
  tell("circuit", data.edges.slice(0, Number(slider.value)));
}

layOut();
show();
slider.addEventListener("input", show);
