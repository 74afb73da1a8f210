// The two views: one feature with all that is known of it, and the prompts with the features of their tokens.
let coloured = "";  // the name of the numbers that colour the examples. "": the scores
const unfolded = new Map();  // whether a person has opened or closed a group of examples

async function featureView(row) {
  const feature = data.features[row], arrays = data.arrays, density = data.density[row];
  const figures = data.figures.map((figure, i) => [figure, data.figureValues[i][row]]);
  const tile = (text, says) => make("li", {}, make("b", {}, text), make("span", {}, isolated(says)));
  const tags = density === 0 ? ["dead"] : density > 0.1 ? ["dense"] : [];
  const [tokens, histograms, others, groups] = await Promise.all([
    Promise.all(data.tokens.map((_, i) => Promise.all([arrays.row(`tokens${i}`, row), arrays.row(`tokens${i}.values`, row)]))),
    Promise.all(data.histograms.map(async (part, i) => {
      const own = arrays.described[`histogram${i}.edges`].shape[0] > 1;
      return histogram(part, await arrays.row(`histogram${i}`, row), await arrays.row(`histogram${i}.edges`, own ? row : 0));
    })),
    Promise.all(data.related.map(async (part, i) => related(part, await arrays.row(`related${i}`, row), await arrays.row(`related${i}.values`, row)))),
    Promise.all(data.examples.map((part, i) => exampleRows(part, i, row))),
  ]);
  const most = Math.max(0, ...tokens.flatMap(([, values]) => Array.from(values, (v) => Number.isFinite(v) ? Math.abs(v) : 0)));
  return [
    make("div", {class: "heading"},
      make("h2", {}, isolated(nameOf(feature)), ...tags.map((tag) => make("small", {class: "tag"}, tag))),
      make("div", {class: "steps"}, make("button", {type: "button", class: "back", onclick: () => show("list")}, `All ${data.unit}s`),
        make("button", {type: "button", "aria-label": `previous ${data.unit} of the list`, onclick: () => step(-1)}, "↑"),
        make("button", {type: "button", "aria-label": `next ${data.unit} of the list`, onclick: () => step(1)}, "↓"))),
    data.notes[feature] ? make("p", {class: "lead"}, isolated(data.notes[feature])) : null,
    make("ul", {class: "tiles"}, tile(percent(density), "of tokens active"), figures.map(([figure, value]) => tile(figure.percent ? percent(value) : significant(value), figure.meaning || figure.name))),
    examplesSection(groups.filter(({rows}) => rows.length)),
    make("div", {class: "grid"}, tokens.map(([ids, values], i) => ranked(data.tokens[i].title, ids, values, most)), histograms, others),
  ];
}

// The examples of one group that are there: {title, peak, rows: [{tokens, values: {name: numbers}}]}.
async function exampleRows(part, i, row) {
  const arrays = data.arrays, name = `example${i}`, window = arrays.described[`${name}.tokens`].shape[2];
  const scaled = async (_, j) => {
    const [scale] = await arrays.row(`${name}.scale${j}`, row);
    return (await arrays.row(`${name}.values${j}`, row)).map((value) => value * scale);
  };
  const [tokens, ...values] = await Promise.all([arrays.row(`${name}.tokens`, row), ...part.values.map(scaled)]);
  const rows = [];
  for (let at = 0; at < tokens.length; at += window) {
    const cut = (numbers) => numbers.subarray(at, at + window);
    if (cut(tokens).some((token) => token > 0)) rows.push({tokens: cut(tokens), values: Object.fromEntries(part.values.map((one, j) => [one, cut(values[j])]))});
  }
  return {title: part.title, peak: part.peak, rows};
}

function extremes(values) {
  let least = 0, largest = 0;
  for (const value of values) if (Number.isFinite(value)) { least = Math.min(least, value); largest = Math.max(largest, Math.abs(value)); }
  return [least, largest];
}

function examplesSection(groups) {
  if (!groups.length) return make("section", {class: "panel examples"}, make("h3", {}, "Examples"), make("p", {class: "note"}, `This ${data.unit} was not active on the text that was read.`));
  const every = groups.flatMap(({rows}) => rows), all = (name) => every.flatMap(({values}) => Array.from(values[name] ?? []));
  const measured = [...new Set(data.examples.flatMap(({values}) => values))].filter((name) => all(name).some((value) => !Number.isNaN(value)));
  const by = measured.includes(coloured) ? coloured : data.score, [least, largest] = extremes(all(by));
  const says = make("p", {class: "reading", "aria-live": "polite"}, "Choose a token to read its numbers.");
  const choice = (name) => make("button", {type: "button", "aria-pressed": String(by === name), onclick: () => { coloured = name; route(); }}, name);
  const list = ({title, peak, rows}, i) => {
    const group = make("details", {open: unfolded.get(title) ?? i === 0}, make("summary", {}, isolated(title), make("small", {}, ` ${rows.length}`)), make("ol", {class: "contexts"},
      rows.map(({tokens, values}) => example(tokens, values, values[by] ?? new Float32Array(tokens.length).fill(NaN), peak, largest))));
    group.addEventListener("toggle", () => unfolded.set(title, group.open));
    return group;
  };
  return make("section", {class: "panel examples", onclick: (event) => {
    const token = event.target.closest("[data-says]");
    if (token) says.replaceChildren(make("code", {class: "chip"}, isolated(token.textContent)), ` ${token.dataset.says}`);
  }}, make("h3", {}, "Examples"),
  make("div", {class: "legendline"}, legend(least, largest, by),
    measured.length > 1 ? make("div", {class: "choice", role: "group", "aria-label": "what colours the tokens"}, measured.map(choice)) : null),
  says, groups.filter(({rows}) => rows.length).map(list));
}

// The prompts. `at` is the number of the prompt, `place` the chosen token, `feature` colours the tokens.
async function promptView(at, place, feature) {
  const arrays = data.arrays, name = `prompt${at}`;
  const [tokens, ends, features, scores] = await Promise.all(["tokens", "ends", "features", "scores"].map((part) => arrays.whole(`${name}.${part}`)));
  const active = (i) => Array.from({length: ends[i] - (i ? ends[i - 1] : 0)}, (_, k) => (i ? ends[i - 1] : 0) + k).sort((a, b) => Math.abs(scores[b]) - Math.abs(scores[a]));
  const strongest = new Map();
  features.forEach((one, k) => { if (!(Math.abs(strongest.get(one)) >= Math.abs(scores[k]))) strongest.set(one, scores[k]); });
  const here = active(place), chosen = feature ?? (here.length ? features[here[0]] : null);
  const values = Array.from(tokens.keys(), (i) => { const k = active(i).find((one) => features[one] === chosen); return k === undefined ? 0 : scores[k]; });
  const [least, largest] = extremes(values), link = (p, t, f) => { location.hash = f === null ? `p=${p}&t=${t}` : `p=${p}&t=${t}&f=${f}`; };
  const token = (i) => make("button", {type: "button", "aria-pressed": String(i === place), ...tokenAttributes(values[i], largest), class: values[i] < 0 ? "t minus" : "t",
    title: `${ends[i] - (i ? ends[i - 1] : 0)} active ${data.unit}s`, onclick: () => link(at, i, null)}, isolated(data.strings[tokens[i]]));
  const most = Math.max(...here.map((k) => Math.abs(scores[k])), 0), ofAll = [...strongest].sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 100);
  const rows = (pairs, top) => Promise.all(pairs.map(async ([one, score]) => make("li", {"aria-current": one === chosen ? "true" : null},
    make("span", {}, featureLink(one), " ", ...await labels(one)), meter(score, top), make("span", {class: "number"}, significant(score)),
    make("button", {type: "button", class: "small", "aria-pressed": String(one === chosen), "aria-label": `colour the prompt by ${nameOf(one)}`, onclick: () => link(at, place, one)}, "colour"))));
  const texts = await Promise.all(Array.from({length: data.prompts}, async (_, p) => {
    const all = await arrays.whole(`prompt${p}.tokens`), text = Array.from(all.subarray(0, 12), (id) => data.strings[id]).join("");
    return make("button", {type: "button", "aria-pressed": String(p === at), onclick: () => link(p, 0, null)}, isolated(text + (all.length > 12 ? "…" : "")));
  }));
  return [
    make("div", {class: "heading"}, make("h2", {}, "Prompts"), make("div", {class: "steps"}, make("button", {type: "button", class: "back", onclick: () => show("list")}, `All ${data.unit}s`))),
    data.prompts > 1 ? make("div", {class: "choice prompts", role: "group", "aria-label": "prompts"}, texts) : null,
    make("section", {class: "panel"}, make("div", {class: "prompt"}, Array.from(tokens.keys(), token)),
      chosen === null ? null : make("div", {class: "legendline"}, legend(least, largest, `${data.score} of ${nameOf(chosen)}`)),
      make("p", {class: "note"}, "Choose a token to see what is active there. The arrow keys move.")),
    make("div", {class: "grid"},
      make("section", {class: "panel"}, make("h3", {}, `Active at token ${place + 1}: `, chip(tokens[place])),
        here.length ? make("ol", {class: "bars chosen"}, await rows(here.slice(0, 50).map((k) => [features[k], scores[k]]), most)) : make("p", {class: "note"}, `No ${data.unit} is active here.`),
        here.length > 50 ? make("p", {class: "note"}, `The strongest 50 of ${here.length}.`) : null),
      make("section", {class: "panel"}, make("h3", {}, "Strongest in the whole prompt"), make("ol", {class: "bars chosen"}, await rows(ofAll, Math.max(...ofAll.map(([, score]) => Math.abs(score)), 0))),
        strongest.size > 100 ? make("p", {class: "note"}, `The strongest 100 of ${strongest.size.toLocaleString("en")}.`) : null)),
  ];
}
