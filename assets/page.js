() => {
  const sidebar = document.querySelector("#settings:not(.open) .toggle-button");
  if (window.matchMedia("(min-width: 1100px)").matches) {
    sidebar?.click();
    document.querySelector("#composer textarea")?.focus(); // on a phone this would call up the keyboard
  }

  // The buttons under questions and answers are part of their text, so one listener serves them all.
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

  // A browser reports a choice of files only where it differs from the last one, which Gradio does not reset:
  // the same picture could not be added to a second question.
  document.addEventListener("change", (event) => {
    if (event.target.matches("#composer input[type=file]")) setTimeout(() => (event.target.value = ""));
  });

  // In Inside, a box drawn on a picture is a region to hide; it is told in shares of the picture's sides.
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
    area.querySelector(".box")?.remove();
    const box = document.createElement("span");
    box.className = "box";
    area.append(box);
    drawn = { area, box, from: shareOf(event, area) };
  });
  document.addEventListener("pointermove", (event) => {
    if (!drawn) return;
    const [left, top, right, bottom] = corners(drawn.from, shareOf(event, drawn.area));
    Object.assign(drawn.box.style, {
      left: `${100 * left}%`, top: `${100 * top}%`,
      width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`,
    });
  });
  document.addEventListener("pointerup", (event) => {
    if (!drawn) return;
    const { area, box, from } = drawn;
    drawn = null;
    const region = corners(from, shareOf(event, area));
    if (region[2] - region[0] < 0.02 || region[3] - region[1] < 0.02) return box.remove();
    const control = document.querySelector("#hide-region");
    control.dataset.region = [area.dataset.picture, ...region].join(" ");
    control.click();
  });
  document.addEventListener("dragstart", (event) => {
    if (event.target.closest?.("#inside .drawable")) event.preventDefault(); // of the picture itself
  });
  document.addEventListener("pointercancel", () => {
    drawn?.box.remove();
    drawn = null;
  });

  function corners([x, y], [toX, toY]) {
    return [Math.min(x, toX), Math.min(y, toY), Math.max(x, toX), Math.max(y, toY)];
  }

  async function copy(text) {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    // Without https, browsers give the clipboard to this older way only.
    const box = document.createElement("textarea");
    box.value = text;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
  }
}
