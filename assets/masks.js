// Draws the mask views of "Inside": which token may attend to which, from the server's own mask.
//
// A view is an element with the class "mask-view" that holds canvases with the class "mask" and, in data-view,
// JSON: tokens [text, position, block] each (position -1 is padding, block -1 is text), blocks {number: name},
// window (tokens, or null), and rows: for each query the runs of allowed keys, first and last, one after the other.
// The rule is not repeated here: this code only draws the runs, and says in words why a cell is as it is.
(() => {
  const MOST_SCALE = 28; // pixels a token
  const EDGE = 14; // pixels of the strips beside the mask that mark the pictures
  const TEXT_FROM = 11, TEXT_ROOM = 72; // tokens of at least TEXT_FROM pixels show their text, in TEXT_ROOM pixels

  class MaskView {
    constructor(root) {
      this.root = root;
      this.data = JSON.parse(root.dataset.view);
      this.size = this.data.tokens.length;
      this.canvases = [...root.querySelectorAll("canvas.mask")];
      this.says = root.querySelector(".mask-says");
      this.rows = {};
      for (const canvas of this.canvases) this.rows[canvas.dataset.kind] = this.data.rows[canvas.dataset.kind];
      this.cursor = { query: this.size - 1, key: 0 };
      this.whole();
      for (const canvas of this.canvases) this.listen(canvas);
      root.querySelectorAll("[data-mask-act]").forEach((button) =>
        button.addEventListener("click", () => this.act(button.dataset.maskAct, button.dataset.kind)),
      );
      new ResizeObserver(() => this.draw()).observe(root);
    }

    whole() {
      this.scale = null; // fits the canvas, whatever its size
      this.left = this.top = 0;
    }

    // Pixels above and left of the mask: the strips, and the text of tokens that are large enough.
    edge(canvas, scale = this.scale) {
      return (scale ?? (canvas.clientWidth - EDGE) / this.size) >= TEXT_FROM ? EDGE + TEXT_ROOM : EDGE;
    }

    side(canvas, scale = this.scale) {
      return Math.max(64, canvas.clientWidth - this.edge(canvas, scale));
    }

    scaleOf(canvas) {
      return this.scale ?? this.side(canvas) / this.size;
    }

    listen(canvas) {
      let dragged = null;
      const touches = new Map();
      canvas.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && !this.active(canvas)) return; // before a click the wheel scrolls the page
        event.preventDefault();
        this.zoom(canvas, event.deltaY < 0 ? 1.25 : 0.8, event.offsetX, event.offsetY);
      }, { passive: false });
      canvas.addEventListener("pointerdown", (event) => {
        canvas.setPointerCapture(event.pointerId);
        touches.set(event.pointerId, [event.offsetX, event.offsetY]);
        dragged = [event.offsetX, event.offsetY];
        canvas.focus({ preventScroll: true });
      });
      canvas.addEventListener("pointermove", (event) => {
        const before = touches.get(event.pointerId);
        if (touches.size === 2 && before) {
          const other = [...touches].find(([id]) => id !== event.pointerId)[1];
          const was = Math.hypot(before[0] - other[0], before[1] - other[1]);
          const now = Math.hypot(event.offsetX - other[0], event.offsetY - other[1]);
          touches.set(event.pointerId, [event.offsetX, event.offsetY]);
          if (was > 0) this.zoom(canvas, now / was, (event.offsetX + other[0]) / 2, (event.offsetY + other[1]) / 2);
          return;
        }
        if (before) {
          touches.set(event.pointerId, [event.offsetX, event.offsetY]);
          const scale = this.scaleOf(canvas);
          this.move((dragged[0] - event.offsetX) / scale, (dragged[1] - event.offsetY) / scale, canvas);
          dragged = [event.offsetX, event.offsetY];
        }
        this.point(canvas, event.offsetX, event.offsetY);
      });
      const released = (event) => touches.delete(event.pointerId);
      canvas.addEventListener("pointerup", released);
      canvas.addEventListener("pointercancel", released);
      canvas.addEventListener("dblclick", (event) => this.zoom(canvas, 2, event.offsetX, event.offsetY));
      canvas.addEventListener("keydown", (event) => this.key(canvas, event));
    }

    active(canvas) {
      return document.activeElement === canvas;
    }

    act(act, kind) {
      const canvas = this.canvases.find((one) => one.dataset.kind === kind) ?? this.canvases[0];
      const middle = this.edge(canvas) + this.side(canvas) / 2;
      if (act === "in" || act === "out") this.zoom(canvas, act === "in" ? 2 : 0.5, middle, middle);
      if (act === "whole") { this.whole(); this.draw(); }
      if (act === "png") this.save(canvas.toDataURL("image/png"), `mask-${canvas.dataset.kind}.png`);
      if (act === "svg") this.saveSvg(canvas);
    }

    key(canvas, event) {
      const step = event.shiftKey ? 10 : 1;
      const moves = { ArrowLeft: [0, -step], ArrowRight: [0, step], ArrowUp: [-step, 0], ArrowDown: [step, 0] };
      if (["+", "=", "-"].includes(event.key)) {
        this.zoom(canvas, event.key === "-" ? 1 / 1.5 : 1.5, ...this.onCanvas(canvas));
        this.follow(canvas); // or the cursor would lie under the text
        this.draw();
      } else if (event.key === "0") { this.whole(); this.draw(); }
      else if (moves[event.key]) {
        const [query, key] = moves[event.key];
        this.cursor = { query: this.within(this.cursor.query + query), key: this.within(this.cursor.key + key) };
        this.follow(canvas);
        this.tell(canvas.dataset.kind);
        this.draw();
      } else return;
      event.preventDefault();
    }

    within(number) {
      return Math.min(this.size - 1, Math.max(0, number));
    }

    onCanvas(canvas) {
      const scale = this.scaleOf(canvas), edge = this.edge(canvas);
      return [edge + (this.cursor.key + 0.5 - this.left) * scale, edge + (this.cursor.query + 0.5 - this.top) * scale];
    }

    follow(canvas) {
      const seen = this.side(canvas) / this.scaleOf(canvas);
      const into = (first, number) => Math.min(Math.max(first, number - seen + 1), number);
      this.left = into(this.left, this.cursor.key);
      this.top = into(this.top, this.cursor.query);
      this.bound(canvas);
    }

    zoom(canvas, factor, x, y) {
      const before = this.scaleOf(canvas), least = this.side(canvas, null) / this.size, was = this.edge(canvas);
      const after = Math.min(Math.max(before * factor, least), Math.max(MOST_SCALE, least));
      this.scale = after === least ? null : after;
      const is = this.edge(canvas);
      this.left += (x - was) / before - (x - is) / after;
      this.top += (y - was) / before - (y - is) / after;
      this.bound(canvas);
      this.draw();
    }

    move(keys, queries, canvas) {
      this.left += keys;
      this.top += queries;
      this.bound(canvas);
      this.draw();
    }

    bound(canvas) {
      const most = Math.max(0, this.size - this.side(canvas) / this.scaleOf(canvas));
      this.left = Math.min(Math.max(0, this.left), most);
      this.top = Math.min(Math.max(0, this.top), most);
    }

    point(canvas, x, y) {
      const scale = this.scaleOf(canvas), edge = this.edge(canvas);
      const key = Math.floor((x - edge) / scale + this.left), query = Math.floor((y - edge) / scale + this.top);
      if (key < 0 || query < 0 || key >= this.size || query >= this.size) return;
      this.cursor = { query, key };
      this.tell(canvas.dataset.kind);
      this.draw();
    }

    allowed(kind, query, key) {
      const runs = this.rows[kind][query];
      for (let i = 0; i < runs.length; i += 2) if (key >= runs[i] && key <= runs[i + 1]) return true;
      return false;
    }

    name(number) {
      const [text, position, block] = this.data.tokens[number];
      if (position < 0) return `padding (${number})`;
      return block >= 0 ? `${this.data.blocks[block]} (token ${position})` : `“${text}” (token ${position})`;
    }

    tell(kind) {
      const { query, key } = this.cursor;
      const [, asks, block] = this.data.tokens[query], [, asked, other] = this.data.tokens[key];
      const may = this.allowed(kind, query, key);
      let why;
      if (asked < 0 || asks < 0) why = "it is padding";
      else if (may) why = asked > asks ? "both belong to the same picture" : "it comes earlier";
      else if (asked > asks) why = block >= 0 && other >= 0 ? "it comes later, in another picture" : "it comes later";
      else why = `it is ${(asks - asked).toLocaleString()} tokens back, outside the window of ${this.data.window}`;
      if (may && asked === asks) why = "it is the token itself";
      this.says.textContent = `${kind}: ${this.name(query)} ${may ? "sees" : "can’t see"} ${this.name(key)}: ${why}.`;
    }

    draw() {
      for (const canvas of this.canvases) this.drawOne(canvas);
    }

    drawOne(canvas) {
      const width = canvas.clientWidth;
      if (!width) return; // its tab is closed
      const dense = Math.min(2, window.devicePixelRatio || 1), pixels = Math.round(width * dense);
      if (canvas.width !== pixels) canvas.width = canvas.height = pixels;
      const style = getComputedStyle(this.root), ink = (name) => rgb(style.getPropertyValue(name));
      const colors = { causal: ink("--mask-causal"), picture: ink("--mask-picture"), ground: ink("--mask-ground") };
      const edge = Math.round(this.edge(canvas) * dense), side = pixels - edge, scale = this.scaleOf(canvas) * dense;
      const context = canvas.getContext("2d");
      context.clearRect(0, 0, pixels, pixels);
      context.putImageData(this.cells(context, canvas.dataset.kind, side, scale, colors), edge, edge);
      this.strips(context, edge, side, scale, style, EDGE * dense);
      if (edge > EDGE * dense) this.texts(context, edge, side, scale, style, EDGE * dense);
      if (this.active(canvas) || this.canvases.some((one) => one.matches(":hover"))) {
        context.strokeStyle = style.getPropertyValue("--mask-cursor");
        context.lineWidth = dense;
        const cell = Math.max(scale, 3 * dense);
        context.save();
        context.beginPath();
        context.rect(edge, edge, side, side); // the cursor may be outside the visible part
        context.clip();
        context.strokeRect(edge + (this.cursor.key - this.left) * scale, edge + (this.cursor.query - this.top) * scale, cell, cell);
        context.restore();
      }
    }

    // Each pixel shows the share of its cells that are allowed, so that zooming out makes a thin line pale, not invisible.
    cells(context, kind, side, scale, colors) {
      const image = context.createImageData(side, side), rows = this.rows[kind];
      const first = Math.floor(this.top), last = Math.min(this.size - 1, Math.ceil(this.top + side / scale));
      const earlier = new Float32Array(side * (side + 1)), later = new Float32Array(side * (side + 1));
      const weight = new Float32Array(side);
      for (let query = first; query <= last; query++) {
        const from = (query - this.top) * scale, until = from + scale;
        for (let y = Math.max(0, Math.floor(from)); y < Math.min(side, Math.ceil(until)); y++) {
          const part = Math.min(until, y + 1) - Math.max(from, y);
          if (part <= 0) continue;
          weight[y] += part;
          const runs = rows[query];
          for (let i = 0; i < runs.length; i += 2) {
            this.add(earlier, y, side, scale, runs[i], Math.min(runs[i + 1], query), part);
            this.add(later, y, side, scale, Math.max(runs[i], query + 1), runs[i + 1], part);
          }
        }
      }
      for (let y = 0; y < side; y++) {
        let before = 0, behind = 0;
        for (let x = 0; x < side; x++) {
          before += earlier[y * (side + 1) + x];
          behind += later[y * (side + 1) + x];
          const inside = (x / scale + this.left) < this.size && weight[y] > 0;
          const total = Math.max(weight[y], 1e-6), a = Math.min(1, before / total), b = Math.min(1, behind / total);
          const at = 4 * (y * side + x);
          for (let channel = 0; channel < 3; channel++)
            image.data[at + channel] = colors.ground[channel] * Math.max(0, 1 - a - b) + colors.causal[channel] * a + colors.picture[channel] * b;
          image.data[at + 3] = inside ? 255 : 0;
        }
      }
      return image;
    }

    // Adds `part` to the pixels of the keys from first to last, as differences that `cells` sums up.
    add(buffer, y, side, scale, first, last, part) {
      if (last < first) return;
      const from = Math.max(0, (first - this.left) * scale), until = Math.min(side, (last + 1 - this.left) * scale);
      if (until <= from) return;
      const row = y * (side + 1), a = Math.floor(from), b = Math.floor(until);
      if (a === b) { buffer[row + a] += part * (until - from); buffer[row + a + 1] -= part * (until - from); return; }
      buffer[row + a] += part * (a + 1 - from);
      buffer[row + a + 1] += part * (from - a);
      buffer[row + b] -= part * (1 - (until - b));
      if (b + 1 <= side) buffer[row + b + 1] -= part * (until - b);
    }

    // The strips right beside the mask that mark the pictures, `thick` pixels wide.
    strips(context, edge, side, scale, style, thick) {
      context.font = `${Math.round(thick * 0.72)}px ui-monospace, monospace`;
      for (const block of this.spans()) {
        const color = style.getPropertyValue("--mask-block");
        for (const [first, across] of [[this.left, true], [this.top, false]]) {
          const from = Math.max(0, (block.first - first) * scale), until = Math.min(side, (block.last + 1 - first) * scale);
          if (until <= from) continue;
          context.fillStyle = color;
          if (across) context.fillRect(edge + from, edge - thick, until - from, 0.85 * thick);
          else context.fillRect(edge - thick, edge + from, 0.85 * thick, until - from);
          if (across && context.measureText(block.name).width < until - from - 6) {
            context.fillStyle = style.getPropertyValue("--mask-block-text");
            context.fillText(block.name, edge + from + 3, edge - 0.3 * thick);
          }
        }
      }
    }

    // The tokens' text outside the strips: queries in lines, keys turned by 90 degrees. Soft tokens have none.
    texts(context, edge, side, scale, style, thick) {
      const room = edge - thick - 4;
      context.save();
      context.font = `${Math.min(0.85 * scale, 0.8 * thick)}px ui-monospace, monospace`;
      context.fillStyle = style.color;
      context.textAlign = "right";
      context.textBaseline = "middle";
      for (const across of [false, true]) {
        const start = across ? this.left : this.top;
        const first = Math.ceil(start - 0.5), last = Math.min(this.size - 1, Math.floor(start + side / scale - 0.5));
        for (let number = first; number <= last; number++) {
          if (this.data.tokens[number][2] >= 0) continue;
          const text = shortened(context, this.data.tokens[number][0], room), place = edge + (number + 0.5 - start) * scale;
          context.save();
          context.translate(across ? place : edge - thick, across ? edge - thick : place);
          if (across) context.rotate(Math.PI / 2); // read downwards, towards the mask
          context.fillText(text, -2, 0);
          context.restore();
        }
      }
      context.restore();
    }

    spans() {
      if (this.known) return this.known;
      this.known = [];
      this.data.tokens.forEach(([, , block], number) => {
        const latest = this.known[this.known.length - 1];
        if (block < 0) return;
        if (latest && latest.block === block && latest.last === number - 1) latest.last = number;
        else this.known.push({ block, first: number, last: number, name: this.data.blocks[block] });
      });
      return this.known;
    }

    saveSvg(canvas) {
      const rows = this.rows[canvas.dataset.kind], parts = [];
      const style = getComputedStyle(this.root), color = (name) => `rgb(${rgb(style.getPropertyValue(name)).join(",")})`;
      // Equal neighboring rows share a rectangle: a thousand soft tokens are one square.
      const open = new Map();
      const close = (key) => { const [x, y, width, fill, until] = open.get(key); parts.push(`<rect x="${x}" y="${y}" width="${width}" height="${until - y}" fill="${fill}"/>`); open.delete(key); };
      rows.forEach((runs, query) => {
        const now = new Set();
        for (let i = 0; i < runs.length; i += 2)
          for (const [from, until, fill] of [[runs[i], Math.min(runs[i + 1], query), color("--mask-causal")], [Math.max(runs[i], query + 1), runs[i + 1], color("--mask-picture")]]) {
            if (until < from) continue;
            const key = `${from}-${until}-${fill}`;
            now.add(key);
            if (open.has(key)) open.get(key)[4] = query + 1;
            else open.set(key, [from, query, until - from + 1, fill, query + 1]);
          }
        for (const key of [...open.keys()]) if (!now.has(key)) close(key);
      });
      for (const key of [...open.keys()]) close(key);
      const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${this.size} ${this.size}" width="1000" height="1000" shape-rendering="crispEdges"><rect width="100%" height="100%" fill="${color("--mask-ground")}"/>${parts.join("")}</svg>`;
      this.save(URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" })), `mask-${canvas.dataset.kind}.svg`);
    }

    save(address, name) {
      const link = document.createElement("a");
      link.href = address;
      link.download = name;
      link.click();
    }
  }

  function shortened(context, text, room) {
    if (context.measureText(text).width <= room) return text;
    let kept = text.length;
    while (kept > 1 && context.measureText(`${text.slice(0, kept)}…`).width > room) kept--;
    return `${text.slice(0, kept)}…`;
  }

  function rgb(text) {
    const hex = text.trim().replace("#", "");
    return [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
  }

  const seen = new WeakSet();
  const begin = () => document.querySelectorAll(".mask-view").forEach((root) => {
    if (!seen.has(root)) { seen.add(root); root.maskView = new MaskView(root); root.maskView.draw(); }
  });
  new MutationObserver(begin).observe(document.documentElement, { childList: true, subtree: true });
  begin();
})();
