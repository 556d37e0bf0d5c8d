() => {
  const sidebar = document.querySelector("#settings:not(.open) .toggle-button");
  if (window.matchMedia("(min-width: 1100px)").matches) {
    sidebar?.click();
    document.querySelector("#composer textarea")?.focus(); // on a phone this would call up the keyboard
  }

  // The buttons under questions and answers are part of their HTML, so one listener serves them all.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-act]");
    if (!button) return;
    if (button.dataset.act === "copy") {
      await copy(button.closest(".message-row").querySelector(".message-content").innerText.trim());
      const name = button.ariaLabel;
      button.textContent = button.ariaLabel = "Copied";
      setTimeout(() => ([button.textContent, button.ariaLabel] = ["Copy", name]), 1500);
      return;
    }
    const control = document.querySelector("#" + button.dataset.act);
    control.dataset.number = button.dataset.number;
    control.click();
  });

  // A browser reports a choice of files only if it differs from the last one, and Gradio does not reset that one.
  // Without this, the same picture could not be added to a second question.
  document.addEventListener("change", (event) => {
    if (event.target.matches("#composer input[type=file]")) setTimeout(() => (event.target.value = ""));
  });

  // The prompt's tokens are counted when typing pauses, not with each key.
  const PAUSE_MS = 700;
  let pause = null;
  const countTokens = () => document.querySelector("#count-tokens")?.click();
  document.addEventListener("input", (event) => {
    if (!event.target.matches("#composer :is(textarea, input), #system-prompt textarea")) return;
    clearTimeout(pause);
    pause = setTimeout(countTokens, PAUSE_MS);
  });
  document.addEventListener("toggle", (event) => {
    const fold = event.target;
    if (fold.matches("#token-count details") && fold.open && !fold.querySelector(".tokens")) countTokens();
  }, true);

  // In Inside, a box on a picture is a region to hide. It is drawn, tapped, or placed with the arrow keys, and given to
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
    if (event.target.matches("#inside .hide-box"))
      hideRegion(event.target.closest("figure").querySelector(".drawable"));
  });

  // Draws an area's box and says where it is; without a region removes it.
  function mark(area, region) {
    const figure = area.closest("figure"), percent = (share) => Math.round(100 * share);
    let box = area.querySelector(".box");
    area.region = region;
    figure.querySelector(".hide-box").hidden = !region;
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
    control.dataset.region = [area.dataset.picture, ...area.region].join(" ");
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

  async function copy(text) {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    // Without https, browsers allow only this older way to copy.
    const box = document.createElement("textarea");
    box.value = text;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
  }
}
