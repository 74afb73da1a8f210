// The data of the page. Arrays lie in compressed blocks of rows, which are decoded when they are needed.
const ITEM = {uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, int32: Int32Array, float16: Uint16Array, float32: Float32Array};

async function unpacked(id) {
  const text = atob(document.getElementById(id).textContent), packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The numbers of a block. Byte k of all numbers stands in plane k.
function joined(planes, type) {
  const size = type.BYTES_PER_ELEMENT, count = planes.length / size, bytes = new Uint8Array(planes.length);
  for (let k = 0; k < size; k++) for (let i = 0, from = k * count; i < count; i++) bytes[i * size + k] = planes[from + i];
  return new type(bytes.buffer);
}

let halves = null;  // the float32 of every float16
function floats(half) {
  if (!halves) {
    halves = new Float32Array(65536);
    for (let bits = 0; bits < 65536; bits++) {
      const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
      halves[bits] = sign * (exponent === 0 ? fraction * 2 ** -24 : exponent < 31 ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction ? NaN : Infinity);
    }
  }
  return Float32Array.from(half, (bits) => halves[bits]);
}

class Arrays {
  constructor(described) { this.described = described; this.blocks = new Map(); this.entire = new Map(); this.ready = new Map(); }

  width(name) { return this.described[name].shape.slice(1).reduce((a, b) => a * b, 1); }

  block(name, number) {
    const id = `${name}/${number}`, type = this.described[name].dtype;
    if (!this.blocks.has(id)) this.blocks.set(id, unpacked(id).then((bytes) => {
      const numbers = joined(bytes, ITEM[type]);
      return type === "float16" ? floats(numbers) : numbers;
    }));
    return this.blocks.get(id);
  }

  // The numbers of one row.
  async row(name, row) {
    const {rows} = this.described[name], width = this.width(name), all = this.ready.get(name);
    if (all) return all.subarray(row * width, (row + 1) * width);
    const block = await this.block(name, Math.floor(row / rows));
    return block.subarray((row % rows) * width, (row % rows + 1) * width);
  }

  // All numbers of an array.
  whole(name) {
    if (!this.entire.has(name)) this.entire.set(name, this.assembled(name));
    return this.entire.get(name);
  }

  async assembled(name) {
    const {dtype, shape, blocks} = this.described[name], type = dtype === "float16" ? Float32Array : ITEM[dtype];
    const all = new type(shape[0] * this.width(name));
    for (let number = 0, at = 0; number < blocks; number++) {
      const part = await this.block(name, number);
      this.blocks.delete(`${name}/${number}`);
      all.set(part, at);
      at += part.length;
    }
    this.ready.set(name, all);
    return all;
  }
}

// A number with three significant digits, as the other reports write it; a dash for NaN.
function significant(value) {
  if (value === null || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e7)) return value.toExponential(2).replace("-", "−").replace("e+", "e").replace("e-", "e−");
  const text = size >= 100 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
  return text.replace("-", "−");
}

function percent(value) { return Number.isNaN(value) ? "–" : `${significant(100 * value)} %`; }
