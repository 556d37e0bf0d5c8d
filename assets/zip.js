// Zip files in the browser: written without compression, since pictures don't get smaller; read with or without.
(() => {
  const table = Uint32Array.from({ length: 256 }, (_, value) => {
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
    return value;
  });
  const checksum = (bytes) => ~bytes.reduce((sum, byte) => table[(sum ^ byte) & 255] ^ (sum >>> 8), ~0) >>> 0;
  const LOCAL = 0x04034b50, ENTRY = 0x02014b50, END = 0x06054b50, UTF8 = 0x0800, STORED = 0, DEFLATED = 8;

  // Numbers of 2 or 4 bytes each, followed by bytes.
  function record(numbers, ...rest) {
    const head = new DataView(new ArrayBuffer(numbers.reduce((sum, [width]) => sum + width, 0)));
    let at = 0;
    for (const [width, value] of numbers) {
      width === 2 ? head.setUint16(at, value, true) : head.setUint32(at, value, true);
      at += width;
    }
    return [new Uint8Array(head.buffer), ...rest];
  }
  const length = (parts) => parts.reduce((sum, part) => sum + part.length, 0);

  function write(files) {
    const body = [], directory = [];
    for (const [text, bytes] of files) {
      const name = new TextEncoder().encode(text), start = length(body);
      const common = [[2, 20], [2, UTF8], [2, STORED], [2, 0], [2, 0x21], [4, checksum(bytes)], [4, bytes.length],
        [4, bytes.length], [2, name.length], [2, 0]];
      body.push(...record([[4, LOCAL], ...common], name, bytes));
      directory.push(...record([[4, ENTRY], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, start]], name));
    }
    const end = record([[4, END], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, length(directory)],
      [4, length(body)], [2, 0]]);
    return new Blob([...body, ...directory, ...end], { type: "application/zip" });
  }

  // The files by their names. Throws for a damaged zip, more than `most` bytes, and names that lead elsewhere.
  async function read(blob, most) {
    if (blob.size > most) throw new RangeError("too large");
    const bytes = new Uint8Array(await blob.arrayBuffer()), view = new DataView(bytes.buffer);
    let end = bytes.length - 22;
    while (end >= 0 && view.getUint32(end, true) !== END) end -= 1;
    if (end < 0) throw new TypeError("no zip");
    const files = new Map();
    let at = view.getUint32(end + 16, true), room = most;
    for (let count = view.getUint16(end + 10, true); count > 0; count--) {
      if (view.getUint32(at, true) !== ENTRY) throw new TypeError("damaged");
      const [way, sum, packed, size] = [view.getUint16(at + 10, true), ...[16, 20, 24].map((n) => view.getUint32(at + n, true))];
      const [name, more, note] = [28, 30, 32].map((n) => view.getUint16(at + n, true));
      const text = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + name)), local = view.getUint32(at + 42, true);
      if (/^[/\\]|[.][.]|\\|:/.test(text)) throw new TypeError("leads elsewhere");
      if ((room -= size) < 0) throw new RangeError("too large");
      const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
      if (view.getUint32(local, true) !== LOCAL || start + packed > bytes.length) throw new TypeError("damaged");
      const part = bytes.subarray(start, start + packed);
      const content = way === STORED ? part : way === DEFLATED ? await inflated(part, size) : null;
      if (content?.length !== size || checksum(content) !== sum) throw new TypeError("damaged");
      files.set(text, content);
      at += 46 + name + more + note;
    }
    return files;
  }
  // At most `size` bytes, whatever the packed ones would make.
  async function inflated(part, size) {
    const whole = new Uint8Array(size);
    let at = 0;
    for await (const chunk of new Blob([part]).stream().pipeThrough(new DecompressionStream("deflate-raw"))) {
      if (at + chunk.length > size) throw new TypeError("damaged");
      whole.set(chunk, at);
      at += chunk.length;
    }
    return at === size ? whole : null;
  }
  ask.zip = { write, read };
})();
