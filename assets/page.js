() => {
  const sidebar = document.querySelector("#settings:not(.open) .toggle-button");
  if (window.matchMedia("(min-width: 1100px)").matches) {
    sidebar?.click();
    document.querySelector("#composer textarea")?.focus(); // on a phone this would call up the keyboard
  }

  // The buttons under an answer are part of its text, so one listener serves them all.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-act]");
    if (!button) return;
    if (button.dataset.act === "retry") {
      document.querySelector("#retry").click();
      return;
    }
    const answer = button.closest(".message-row").querySelector(".message-content");
    await navigator.clipboard.writeText(answer.innerText.trim());
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
