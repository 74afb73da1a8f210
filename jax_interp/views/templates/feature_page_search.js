// The search for a text in sequences of tokens. A match may begin and end inside tokens, and go over several.
function plain(text) { return text.toLowerCase().replaceAll("·", " "); }

class Matcher {
  // Bit j of `begin[token]` is set if the token ends with the first j characters of the query.
  constructor(query, texts) {
    this.query = query;
    this.texts = texts;
    this.contains = new Uint8Array(texts.length);
    this.begin = new Uint32Array(texts.length);
    for (let token = 1; token < texts.length; token++) {
      const text = texts[token];
      if (text.includes(query)) this.contains[token] = 1;
      for (let j = Math.min(query.length - 1, text.length); j > 0; j--) if (text.endsWith(query.slice(0, j))) this.begin[token] |= 1 << j;
    }
  }

  // `open`: how many characters of the query the tokens before have matched, one bit each. Returns the bits after
  // `token`; bit 0 says that the query is complete.
  after(open, token) {
    let bits = this.begin[token] | this.contains[token];
    const text = this.texts[token];
    for (let j = 1; open >> j; j++) {
      if (!((open >> j) & 1)) continue;
      const rest = this.query.slice(j);
      if (text.startsWith(rest)) bits |= 1;
      else if (text && rest.startsWith(text)) bits |= 1 << (j + text.length);
    }
    return bits;
  }

  // Counts matches in `rows` rows of `examples` windows of `window` tokens: in `anywhere`, and those that end at `peak`.
  count(tokens, examples, window, peak, anywhere, atPeak) {
    let at = 0;
    for (let row = 0; row < anywhere.length; row++) {
      for (let example = 0; example < examples; example++) {
        let open = 0, found = false;
        for (let place = 0; place < window; place++) {
          const token = tokens[at++];
          open = token === 0 ? 0 : open > 1 ? this.after(open, token) : this.begin[token] | this.contains[token];
          if (open & 1) { found = true; if (place === peak) atPeak[row]++; }
        }
        if (found) anywhere[row]++;
      }
    }
  }
}

// The rows that match, with a score each: how often the query stands at peaks, among ranked tokens, and in contexts.
async function searched(text, where) {
  const query = plain(text), count = data.features.length, scores = new Float32Array(count), number = /^#?\d+$/.test(query.trim());
  const wants = (part) => where === "all" || where === part;
  if (where === "all" && number && data.rowOf.has(Number(query.trim().replace("#", "")))) scores[data.rowOf.get(Number(query.trim().replace("#", "")))] = 1e6;
  if (wants("note")) data.features.forEach((feature, row) => {
    if (plain(`${data.notes[feature] ?? ""}\n${data.names[feature] ?? ""}`).includes(query)) scores[row] += 100;
  });
  const matcher = new Matcher(query, data.plain);
  if (wants("peak") || wants("context")) for (const [i, part] of data.examples.entries()) {
    const tokens = await data.arrays.whole(`example${i}.tokens`), [, examples, window] = data.arrays.described[`example${i}.tokens`].shape;
    const anywhere = new Uint16Array(count), atPeak = new Uint16Array(count);
    matcher.count(tokens, examples, window, part.peak, anywhere, atPeak);
    for (let row = 0; row < count; row++) scores[row] += (wants("peak") ? atPeak[row] : 0) + (wants("context") ? 0.01 * anywhere[row] : 0);
  }
  if (wants("ranked")) for (const i of data.tokens.keys()) {
    const tokens = await data.arrays.whole(`tokens${i}`), n = data.arrays.width(`tokens${i}`);
    for (let at = 0; at < tokens.length; at++) if (matcher.contains[tokens[at]]) scores[Math.floor(at / n)] += 1;
  }
  return scores;
}
