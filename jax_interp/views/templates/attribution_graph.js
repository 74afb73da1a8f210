// Draws the graph from the data of the page. All text is set as text.
const SVG = "http://www.w3.org/2000/svg", STEP = 15, LEFT = 74, TOP = 10, MOST = 400, ACROSS = 8;

function made(parent, name, attributes = {}, text = null, space = SVG) {
  const element = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  parent.appendChild(element);
  return element;
}

const html = (parent, name, attributes = {}, text = null) => made(parent, name, attributes, text, null);
const number = (x) => (Math.abs(x) >= 1e4 || (x !== 0 && Math.abs(x) < 1e-3) ? x.toExponential(2) : x.toPrecision(3));

async function unpacked(id) {
  const text = atob(document.getElementById(id).textContent), packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

function show(data) {
  const {nodes, tokens, rows, source, target, weight} = data;
  const svg = document.getElementById("graph"), panel = document.getElementById("panel"), share = document.getElementById("share");
  const into = nodes.map(() => []), out = nodes.map(() => []);
  weight.forEach((_, e) => { into[target[e]].push(e); out[source[e]].push(e); });
  for (const list of [...into, ...out]) list.sort((a, b) => Math.abs(weight[b]) - Math.abs(weight[a]));
  const strongest = [...weight.keys()].sort((a, b) => Math.abs(weight[b]) - Math.abs(weight[a]));
  const largest = strongest.length ? Math.abs(weight[strongest[0]]) : 1;

  // A column is as wide as its fullest cell and its token.
  const cells = new Map();
  nodes.forEach((node, i) => { const key = `${node.pos},${node.row}`; cells.set(key, [...(cells.get(key) || []), i]); });
  const width = tokens.map((token, p) => Math.max(46, 7.6 * Math.min([...token].length, 16) + 12,
    ...rows.map((_, r) => STEP * (Math.min((cells.get(`${p},${r}`) || []).length, ACROSS) + 1))));
  const lines = rows.map((_, r) => Math.max(1, ...tokens.map((_, p) => Math.ceil((cells.get(`${p},${r}`) || []).length / ACROSS))));
  const left = width.map((_, p) => LEFT + width.slice(0, p).reduce((a, b) => a + b, 0));
  const total = LEFT + width.reduce((a, b) => a + b, 0) + LEFT, tall = lines.map((n) => 32 + STEP * (n - 1));
  const height = TOP + tall.reduce((a, b) => a + b, 0) + 24;
  const base = tall.map((_, r) => TOP + tall.slice(r).reduce((a, b) => a + b, 0));  // the lower end of each row
  svg.setAttribute("width", total); svg.setAttribute("height", height); svg.setAttribute("viewBox", `0 0 ${total} ${height}`);
  rows.forEach((row, r) => {
    made(svg, "line", {class: "lane", x1: LEFT, x2: total - LEFT + 10, y1: base[r], y2: base[r]});
    made(svg, "text", {class: "row", x: LEFT - 10, y: base[r] - 12, "text-anchor": "end"}, row);
    made(svg, "text", {class: "row", x: total - LEFT + 16, y: base[r] - 12}, row);
  });
  tokens.forEach((token, p) => {
    const short = [...token].length > 16 ? [...token].slice(0, 15).join("") + "…" : token;
    const name = made(svg, "text", {class: "name", x: left[p] + width[p] / 2, y: height - 8, "text-anchor": "middle"}, short);
    made(name, "title", {}, `${token} (position ${p})`);
  });
  const place = [];
  for (const members of cells.values()) members.forEach((i, k) => {
    const {pos, row} = nodes[i], line = Math.floor(k / ACROSS), beside = Math.min(ACROSS, members.length - ACROSS * line);
    place[i] = [left[pos] + width[pos] / 2 + STEP * ((k % ACROSS) - (beside - 1) / 2), base[row] - 16 - STEP * line];
  });
  const edges = made(svg, "g"), marks = made(svg, "g");
  const shapes = nodes.map((node, i) => {
    const [x, at] = place[i], about = {class: `node is-${node.kind}`, tabindex: 0, role: "button", "aria-label": node.label};
    const shape = node.kind === "feature" ? made(marks, "circle", {...about, cx: x, cy: at, r: 6})
      : node.kind === "error" ? made(marks, "path", {...about, d: `M${x} ${at - 6}l6 6l-6 6l-6-6z`})
      : made(marks, "rect", {...about, x: x - 6, y: at - 6, width: 12, height: 12, rx: 2});
    made(shape, "title", {}, node.label);
    shape.addEventListener("click", (event) => { event.stopPropagation(); choose(i); });
    shape.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(i); } });
    return shape;
  });
  svg.addEventListener("click", () => choose(null));
  share.addEventListener("input", () => { if (chosen === null) draw(null); });

  let chosen = null;
  function draw(i) {
    const count = Math.min(MOST, Math.ceil(strongest.length * share.value / 100));
    const shown = i === null ? strongest.slice(0, count) : [...into[i], ...out[i]].slice(0, 2 * MOST);
    const top = i === null ? largest : Math.max(...shown.map((e) => Math.abs(weight[e])), 1e-30);
    edges.replaceChildren();
    for (const e of shown) {
      const [[x1, y1], [x2, y2]] = [place[source[e]], place[target[e]]], middle = (y1 + y2) / 2, size = Math.abs(weight[e]) / top;
      made(edges, "path", {class: weight[e] < 0 ? "edge down" : "edge", d: `M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${y2}`,
        "stroke-width": 0.5 + 3.5 * size, "stroke-opacity": i === null ? 0.15 + 0.55 * size : 0.3 + 0.7 * size});
    }
    const near = new Set(shown.flatMap((e) => [source[e], target[e]]).concat(i ?? []));
    shapes.forEach((shape, k) => {
      shape.classList.toggle("faint", i !== null && !near.has(k));
      shape.classList.toggle("chosen", k === i);
      shape.setAttribute("aria-pressed", k === i);
    });
  }

  const into_logit = (e) => `${nodes[source[e]].label} → ${nodes[target[e]].label}`;
  function list(title, members, other, said = (e) => nodes[other[e]].label) {
    html(panel, "h3", {}, `${title} (${members.length})`);
    if (!members.length) { html(panel, "p", {class: "note"}, "none"); return; }
    const table = html(panel, "table");
    for (const e of members.slice(0, 60)) {
      const row = html(table, "tr"), name = html(html(row, "td"), "button", {type: "button"});
      html(name, "bdi", {}, said(e));
      name.addEventListener("click", () => choose(other[e]));
      html(row, "td", {class: weight[e] < 0 ? "n neg" : "n"}, number(weight[e]));
    }
    if (members.length > 60) html(panel, "p", {class: "note"}, `and ${members.length - 60} weaker ones`);
  }

  function choose(i) {
    chosen = i;
    draw(i);
    panel.replaceChildren();
    if (i === null) {
      html(panel, "h2", {}, `${nodes.length} nodes, ${weight.length} edges`);
      html(panel, "p", {class: "note"}, "Choose a node to see its edges. An edge is what the target loses if the source is removed and nothing else responds.");
      list("Strongest edges into logits", strongest.filter((e) => nodes[target[e]].kind === "logit").slice(0, 30), source, into_logit);
      return;
    }
    const node = nodes[i];
    html(html(panel, "h2"), "bdi", {}, node.label);
    const facts = html(panel, "dl");
    for (const [name, value] of node.facts) { html(facts, "dt", {}, name); html(html(facts, "dd"), "bdi", {}, value); }
    list("Edges in", into[i], source);
    list("Edges out", out[i], target);
    if (node.promoted.length) {
      html(panel, "h3", {}, "Logits it raises most");
      const table = html(panel, "table");
      for (const [token, amount] of node.promoted) {
        const row = html(table, "tr");
        html(html(row, "td"), "bdi", {}, token);
        html(row, "td", {class: amount < 0 ? "n neg" : "n"}, number(amount));
      }
    }
  }

  document.getElementById("app").hidden = false;
  svg.parentElement.scrollLeft = total;  // the logits stand at the last token
  const first = location.hash.match(/^#n=(\d+)$/);
  choose(first && Number(first[1]) < nodes.length ? Number(first[1]) : null);
}

unpacked("data").then(show);
