// Regions to hide on the pictures in Inside. It listens on the document, because the pictures come and go.
(() => {
  // A box is drawn, tapped, or placed with the arrow keys, and given to
  // the server in shares of the picture's sides: left, top, right, bottom.
  const LEAST = 0.02, STEP = 0.02, SIDE = 0.3;
  let drawn = null;
  const shareOf = (event, area) => {
    const place = area.getBoundingClientRect();
    const share = (value, first, length) => Math.min(1, Math.max(0, (value - first) / length));
    return [share(event.clientX, place.left, place.width), share(event.clientY, place.top, place.height)];
  };
  document.addEventListener("pointerdown", (event) => {
    const area = event.target.closest("#inside .drawable");
    if (!area || !event.isPrimary) return;
    event.preventDefault();
    drawn = { area, from: shareOf(event, area), before: area.region };
  });
  document.addEventListener("pointermove", (event) => {
    if (drawn) mark(drawn.area, corners(drawn.from, shareOf(event, drawn.area)));
  });
  document.addEventListener("pointerup", (event) => {
    if (!drawn) return;
    const { area, from } = drawn, region = corners(from, shareOf(event, area));
    drawn = null;
    area.focus({ preventScroll: true });
    if (region[2] - region[0] >= LEAST && region[3] - region[1] >= LEAST) {
      mark(area, region);
      hideRegion(area);
    } else mark(area, moved([from[0] - SIDE / 2, from[1] - SIDE / 2, from[0] + SIDE / 2, from[1] + SIDE / 2], 0, 0));
  });
  document.addEventListener("pointercancel", () => { // the finger scrolls instead
    if (drawn) mark(drawn.area, drawn.before);
    drawn = null;
  });
  document.addEventListener("dragstart", (event) => {
    if (event.target.closest?.("#inside .drawable")) event.preventDefault(); // do not drag the picture itself
  });
  document.addEventListener("keydown", (event) => {
    const area = event.target;
    if (!area.matches?.("#inside .drawable")) return;
    const way = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] }[event.key];
    if (way && !area.region) mark(area, [0.5 - SIDE / 2, 0.5 - SIDE / 2, 0.5 + SIDE / 2, 0.5 + SIDE / 2]);
    else if (way) mark(area, (event.shiftKey ? sized : moved)(area.region, ...way));
    else if (event.key === "Enter" && area.region) hideRegion(area);
    else if (event.key === "Escape" && area.region) mark(area, undefined);
    else return;
    event.preventDefault();
  });
  document.addEventListener("click", (event) => {
    const area = event.target.closest("#inside figure")?.querySelector(".drawable");
    if (event.target.matches("#inside .hide-box")) hideRegion(area);
    if (event.target.matches("#inside .closer-box")) lookCloser(regionOf(area));
    if (event.target.matches("#inside .closer-place")) lookCloser(event.target.dataset.region);
  });
  document.addEventListener("submit", (event) => {
    if (!event.target.matches("#inside .ask-box")) return;
    event.preventDefault();
    const text = event.target.querySelector("input").value.trim();
    if (!text) return;
    lookCloser(regionOf(event.target.closest("figure").querySelector(".drawable")), text);
    if (matchMedia("(max-width: 1099px)").matches) // there Inside lies over the chat
      document.querySelector("#inside [data-act=inside-close]").click();
  });

  // Draws an area's box and says where it is; without a region removes it.
  function mark(area, region) {
    const figure = area.closest("figure"), percent = (share) => Math.round(100 * share);
    let box = area.querySelector(".box");
    area.region = region;
    for (const control of figure.querySelectorAll(".hide-box, .closer-box, .ask-box")) control.hidden = !region;
    figure.querySelector("[role=status]").textContent = region
      ? `Box from ${percent(region[0])} to ${percent(region[2])} % across and ${percent(region[1])} to ${percent(region[3])} % down.`
      : "";
    if (!region) return box?.remove();
    if (!box) {
      box = document.createElement("span");
      box.className = "box";
      area.append(box);
    }
    const [left, top, right, bottom] = region.map((share) => 100 * share);
    Object.assign(box.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
  }

  function hideRegion(area) {
    const control = document.querySelector("#hide-region");
    control.dataset.region = regionOf(area);
    control.click();
  }

  function regionOf(area) {
    return [area.dataset.picture, ...area.region].join(" ");
  }

  // Asks the question again, or a text about the region as a new one.
  function lookCloser(region, text = "") {
    const control = document.querySelector("#look-closer");
    control.dataset.region = region;
    control.dataset.text = text;
    control.dataset.number = document.querySelector("#inside-open").dataset.number;
    control.click();
  }

  function moved([left, top, right, bottom], across, down) {
    const width = right - left, height = bottom - top;
    const x = Math.min(1 - width, Math.max(0, left + across)), y = Math.min(1 - height, Math.max(0, top + down));
    return [x, y, x + width, y + height];
  }

  function sized([left, top, right, bottom], across, down) {
    const edge = (from, until) => Math.min(1, Math.max(from + LEAST, until));
    return [left, top, edge(left, right + across), edge(top, bottom + down)];
  }

  function corners([x, y], [toX, toY]) {
    return [Math.min(x, toX), Math.min(y, toY), Math.max(x, toX), Math.max(y, toY)];
  }
})();
