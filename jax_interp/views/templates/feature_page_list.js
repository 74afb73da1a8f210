// The list of features, its order and filters, and the address of the page: #f=FEATURE, #p=PROMPT&t=TOKEN&f=FEATURE.
const ROW = 54, data = {}, find = (id) => document.getElementById(id);
let order = new Uint32Array(0), current = -1, asked = 0;

async function start() {
  Object.assign(data, JSON.parse(new TextDecoder().decode(await unpacked("header"))));
  data.plain = data.strings.map(plain);
  data.arrays = new Arrays(data.arrays);
  data.features = await data.arrays.whole("features");
  data.density = await data.arrays.whole("density");
  data.labels = await data.arrays.whole("labels");
  data.figureValues = await Promise.all(data.figures.map((_, i) => data.arrays.whole(`figure${i}`)));
  data.rowOf = new Map(Array.from(data.features, (feature, row) => [feature, row]));
  const names = ["best match", "index", "density", ...data.figures.map(({name}) => name)];
  find("sort").append(...names.flatMap((name, i) => i < 2 ? [make("option", {value: `${i}+`}, name)] : [make("option", {value: `${i}-`}, `${name}, largest first`), make("option", {value: `${i}+`}, `${name}, smallest first`)]));
  if (!Object.keys(data.notes).length) find("where").querySelector("[value=note]").remove();
  find("app").hidden = false;
  // Not "change": it comes when a click leaves the field, and would replace the row under the pointer.
  find("controls").addEventListener("input", arranged);
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  find("list").addEventListener("scroll", drawRows, {passive: true});
  new ResizeObserver(drawRows).observe(find("list"));
  addEventListener("hashchange", route);
  addEventListener("keydown", key);
  await arranged();
  await route();
  document.body.dataset.ready = "true";
  for (const i of data.examples.keys()) await data.arrays.whole(`example${i}.tokens`);  // so that the first search is quick
}

// Filters and sorts the list.
async function arranged() {
  const call = ++asked, query = find("query").value, sort = find("sort").value || "0+", which = parseInt(sort), descending = sort.endsWith("-");
  const matches = query.trim() ? await searched(query, find("where").value) : null;
  if (call !== asked) return;  // a later key has asked for something else
  const bound = (id, otherwise) => find(id).value === "" || Number.isNaN(find(id).valueAsNumber) ? otherwise : find(id).valueAsNumber / 100;
  const least = bound("least", -Infinity), most = bound("most", Infinity), alive = find("alive").value, {density} = data;
  const kept = [];
  for (let row = 0; row < density.length; row++) {
    if (matches && !matches[row]) continue;
    if (density[row] < least || density[row] > most) continue;
    if (alive === "alive" && !(density[row] > 0) || alive === "dead" && density[row] !== 0 || alive === "dense" && !(density[row] > 0.1)) continue;
    kept.push(row);
  }
  const values = which === 0 ? matches : which === 1 ? data.features : which === 2 ? density : data.figureValues[which - 3], sign = descending || which === 0 ? -1 : 1;
  const last = (value) => Number.isNaN(value);  // features without a figure stand at the end in both directions
  if (values) kept.sort((a, b) => last(values[a]) - last(values[b]) || sign * (values[a] - values[b]) || data.features[a] - data.features[b]);
  else kept.sort((a, b) => data.features[a] - data.features[b]);
  order = Uint32Array.from(kept);
  find("status").textContent = `${order.length.toLocaleString("en")} of ${density.length.toLocaleString("en")}`;
  find("column").textContent = which > 2 ? data.figures[which - 3].name : "density";
  find("rows").style.height = `${order.length * ROW}px`;
  find("list").scrollTop = 0;
  drawRows();
}

// Draws the rows of the list that can be seen.
function drawRows() {
  const list = find("list"), first = Math.max(0, Math.floor(list.scrollTop / ROW) - 6), last = Math.min(order.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 6);
  const focused = document.activeElement?.closest?.("#rows a")?.dataset.row, which = parseInt(find("sort").value || "0"), width = data.arrays.width("labels");
  find("rows").replaceChildren(...Array.from({length: Math.max(last - first, 0)}, (_, k) => {
    const row = order[first + k], feature = data.features[row];
    const figure = which > 2 ? data.figures[which - 3] : null, value = figure ? data.figureValues[which - 3][row] : data.density[row];
    return make("li", {"--top": `${(first + k) * ROW}px`, "aria-setsize": order.length, "aria-posinset": first + k + 1},
      make("a", {href: `#f=${feature}`, "data-row": row, "aria-current": row === current ? "true" : null},
        make("span", {class: "index"}, isolated(data.names[feature] ?? String(feature))), make("span", {class: "number"}, figure && !figure.percent ? significant(value) : percent(value)),
        make("span", {class: "hint"}, data.notes[feature] ? isolated(data.notes[feature]) : data.density[row] === 0 ? "never active" : chips(data.labels.subarray(row * width, (row + 1) * width)))));
  }));
  if (focused !== undefined) find("rows").querySelector(`[data-row="${focused}"]`)?.focus({preventScroll: true});
}

function show(part) { find("app").dataset.show = part; if (part === "list") drawRows(); }

// The neighbour of the current feature in the list.
function step(by) {
  const at = order.indexOf(current), next = at < 0 ? 0 : at + by;
  if (next < 0 || next >= order.length) return;
  const list = find("list"), top = next * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  location.hash = `f=${data.features[order[next]]}`;
}

function key(event) {
  const name = event.target.tagName, moves = {ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1}[event.key];
  if (event.ctrlKey || event.metaKey || event.altKey || name === "SELECT") return;
  if (event.key === "/" && name !== "INPUT") { event.preventDefault(); show("list"); find("query").focus(); return; }
  if (!moves || (name === "INPUT" && !(event.target.id === "query" && event.key.match(/Down|Up/)))) return;
  const address = new URLSearchParams(location.hash.slice(1));
  event.preventDefault();
  if (!address.has("p")) step(moves);
  else find("main").querySelectorAll(".prompt button")[Number(address.get("t") ?? 0) + moves]?.click();
}

// Shows what the address names: the whole number of a parameter, or null.
async function route() {
  const address = new URLSearchParams(location.hash.slice(1)), number = (name) => /^\d+$/.test(address.get(name) ?? "") ? Number(address.get(name)) : null;
  const prompt = number("p"), feature = number("f"), main = find("main"), call = route.calls = (route.calls ?? 0) + 1;
  let parts;
  if (prompt !== null && prompt < data.prompts) {
    const length = data.arrays.described[`prompt${prompt}.tokens`].shape[0];
    parts = await promptView(prompt, Math.min(number("t") ?? length - 1, length - 1), feature);
  } else if (feature !== null && !data.rowOf.has(feature)) {
    parts = [make("p", {class: "lead"}, `${nameOf(feature)} is not on this page, which has ${data.features.length.toLocaleString("en")} ${data.unit}s.`), make("button", {type: "button", class: "back", onclick: () => show("list")}, `All ${data.unit}s`)];
  } else {
    current = feature === null ? order[0] ?? 0 : data.rowOf.get(feature);
    parts = await featureView(current);
  }
  if (call !== route.calls) return;
  const chosen = document.activeElement?.closest?.(".prompt") !== null && document.activeElement !== document.body;
  main.replaceChildren(...parts.filter((part) => part !== null));
  if (chosen) main.querySelector(".prompt [aria-pressed=true]")?.focus();
  main.scrollTop = 0;
  find("to-prompts")?.toggleAttribute("aria-current", prompt !== null);
  find("to-feature")?.toggleAttribute("aria-current", prompt === null);
  find("to-feature")?.setAttribute("href", `#f=${data.features[Math.max(current, 0)]}`);
  if (prompt !== null || feature !== null) find("app").dataset.show = "detail";
  drawRows();
}

start();
