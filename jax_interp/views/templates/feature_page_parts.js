// The parts that views are made of. Every text enters the page as a text node, never as HTML.
function make(tag, attributes = {}, ...children) {
  const element = tag === "svg" || make.svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null));
  return element;
}

function svg(tag, attributes, ...children) {
  make.svg = true;
  try { return make(tag, attributes, ...children); } finally { make.svg = false; }
}

function isolated(text) { return make("bdi", {}, text); }
function nameOf(feature) { return data.names[feature] ?? `${capitalized(data.unit)} ${feature}`; }
function capitalized(text) { return text.charAt(0).toUpperCase() + text.slice(1); }

// A token with the colour of its value. `largest` has full colour. Blue is positive, orange negative.
function tokenAttributes(value, largest) {
  if (Number.isNaN(value)) return {class: "t"};
  const share = largest > 0 ? Math.min(Math.abs(value) / largest, 1) : 0;
  return {class: value < 0 ? "t minus" : "t", "--a": share.toFixed(3)};
}

function legend(least, largest, says) {
  const signed = least < 0, bar = make("span", {class: signed ? "scale both" : "scale", "aria-hidden": "true"});
  return make("p", {class: "legend"}, make("span", {}, signed ? significant(-largest) : "0"), bar, make("span", {}, significant(largest)), make("span", {class: "says"}, says));
}

// A bar whose length is the share of the largest value.
function meter(value, largest) {
  const share = largest > 0 ? Math.min(Math.abs(value) / largest, 1) : 0;
  return make("span", {class: value < 0 ? "meter minus" : "meter", "--a": share.toFixed(3), "aria-hidden": "true"});
}

function chip(token) { return make("code", {class: "chip"}, isolated(data.strings[token])); }
function chips(tokens) { return Array.from(tokens).filter((token) => token > 0).map(chip); }

// A link to a feature, or its name where the page does not have it.
function featureLink(feature) {
  return data.rowOf.has(feature) ? make("a", {href: `#f=${feature}`}, isolated(nameOf(feature))) : make("span", {title: "not on this page"}, isolated(nameOf(feature)));
}

async function labels(feature) {
  return data.rowOf.has(feature) ? chips(await data.arrays.row("labels", data.rowOf.get(feature))) : [];
}

function ranked(title, tokens, values, opposite) {
  const shown = Array.from(tokens.keys()).filter((i) => tokens[i] > 0), largest = Math.max(...shown.map((i) => Math.abs(values[i])), opposite);
  if (!shown.length) return null;
  const row = (i) => make("li", {}, chip(tokens[i]), meter(values[i], largest), make("span", {class: "number"}, significant(values[i])));
  return make("section", {class: "panel"}, make("h3", {}, isolated(title)), make("ol", {class: "bars"}, shown.map(row)));
}

async function related({title, meaning}, features, values) {
  const shown = Array.from(features.keys()).filter((i) => features[i] >= 0), largest = Math.max(...shown.map((i) => Math.abs(values[i])));
  if (!shown.length) return null;
  const rows = await Promise.all(shown.map(async (i) => make("li", {},
    make("span", {}, featureLink(features[i]), " ", ...await labels(features[i])), meter(values[i], largest), make("span", {class: "number"}, significant(values[i])))));
  return make("section", {class: "panel"}, make("h3", {}, isolated(title)), make("ol", {class: "bars"}, rows), meaning ? make("p", {class: "note"}, meaning) : null);
}

function histogram({title, meaning, logarithmic}, counts, edges) {
  const total = counts.reduce((a, b) => a + b, 0), height = (count) => logarithmic ? Math.log10(1 + count) : count, tallest = height(Math.max(...counts));
  if (!total) return null;
  const [width, tall] = [320, 96], span = edges[edges.length - 1] - edges[0], x = (value) => (value - edges[0]) / span * width;
  const zero = edges[0] < 0 && edges[edges.length - 1] > 0 ? [svg("line", {x1: x(0), x2: x(0), y1: 0, y2: tall, class: "zero"})] : [];
  const bars = Array.from(counts.keys()).filter((i) => counts[i]).map((i) => {
    const bar = tall * height(counts[i]) / tallest, left = x(edges[i]), right = x(edges[i + 1]);
    return svg("rect", {x: left + 0.5, width: Math.max(right - left - 1, 0.6), y: tall - bar, height: bar, class: edges[i + 1] <= 0 ? "minus" : "plus"},
      svg("title", {}, `${significant(edges[i])} to ${significant(edges[i + 1])}: ${counts[i].toLocaleString("en")}`));
  });
  const drawing = svg("svg", {viewBox: `0 0 ${width} ${tall + 1}`, role: "img", "aria-label": `${title}: ${total.toLocaleString("en")} values from ${significant(edges[0])} to ${significant(edges[edges.length - 1])}`},
    ...zero, ...bars, svg("line", {x1: 0, x2: width, y1: tall + 0.5, y2: tall + 0.5, class: "axis"}));
  return make("section", {class: "panel histogram"}, make("h3", {}, isolated(title)), drawing,
    make("p", {class: "ends"}, make("span", {}, significant(edges[0])), make("span", {}, logarithmic ? "logarithmic height" : ""), make("span", {}, significant(edges[edges.length - 1]))),
    meaning ? make("p", {class: "note"}, meaning) : null);
}

// One piece of text. `values` are the numbers of its tokens by name, and `shown` those that colour them. The token at the
// peak stands in the middle column, so that the peaks of a list are aligned.
function example(tokens, values, shown, peak, largest) {
  const cell = (i) => {
    const says = Object.entries(values).map(([name, numbers]) => `${name} ${significant(numbers[i])}`), attributes = tokenAttributes(shown[i], largest);
    return make("bdi", {...attributes, class: i === peak ? `${attributes.class} peak` : attributes.class, title: says.join("\n"), "data-says": says.join(", ")}, data.strings[tokens[i]]);
  };
  const there = Array.from(tokens.keys()).filter((i) => tokens[i] > 0), part = (keep) => there.filter(keep).map(cell);
  return make("li", {}, make("b", {}, significant(values[data.score][peak])),
    make("code", {class: "left"}, make("span", {}, part((i) => i < peak))), make("code", {class: "middle"}, part((i) => i === peak)), make("code", {class: "right"}, part((i) => i > peak)));
}
