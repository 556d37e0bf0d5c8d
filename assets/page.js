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
