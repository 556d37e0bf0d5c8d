() => {
  // In another site's page, as <gradio-app src="…">, a frame of its own keeps the sidebar, the styles and the keys apart.
  const host = ask.embedded && document.querySelector("#main").closest("gradio-app");
  if (host) {
    const frame = document.createElement("iframe");
    frame.src = host.getAttribute("src") ?? ask.spaceAddress;
    frame.title = document.title;
    frame.allow = "clipboard-write; camera; fullscreen";
    frame.style = "border: 0; display: block; width: 100%";
    frame.style.height = host.getAttribute("initial_height") ?? "min(90vh, 760px)";
    document.querySelector("#ask-style")?.remove();
    host.replaceWith(frame);
    return;
  }

  const composer = () => document.querySelector("#composer textarea");
  const find = (selector) => document.querySelector(selector);
  const hasMouse = matchMedia("(pointer: fine)"); // elsewhere focus would call up the keyboard
  const toComposer = (ask.toComposer = () => hasMouse.matches && composer()?.focus());

  // Settings are beside the chat where there is room. start.js has reserved it, so that nothing moves.
  const root = document.documentElement, settings = find("#settings"), toggle = find("#settings .toggle-button");
  toggle.setAttribute("aria-label", "Settings");
  if (root.dataset.settings === "open" && !settings.classList.contains("open")) toggle.click();
  const noteSettings = () => {
    const open = settings.classList.contains("open");
    root.dataset.settings = open ? "open" : "closed";
    toggle.setAttribute("aria-expanded", open);
  };
  setTimeout(() => {
    noteSettings();
    new MutationObserver(noteSettings).observe(settings, { attributeFilter: ["class"] });
  }, 500);
  if (matchMedia("(min-width: 1100px)").matches && !ask.framed) toComposer();

  const theme = ask.kept.get("theme", "localStorage");
  if (theme && !new URLSearchParams(location.search).has("__theme"))
    find(`#theme input[value="${theme}"]`)?.click();

  // Gradio's page for programs opens from the footer, but not from its own address, where the first click closes it.
  if (new URLSearchParams(location.search).get("view") === "api")
    for (let click = 0; click < 2; click++) find("footer .show-api")?.click();

  // The buttons under questions and answers are part of their HTML, so one listener serves them all.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-act]");
    if (!button) return;
    if (button.dataset.act === "copy") {
      const said = button.closest(".message-row");
      const texts = said.querySelectorAll(".message-content");
      const json = said.querySelector(".fields-json")?.textContent;
      await copy(json ?? texts[texts.length - 1].innerText.trim());  // after a closer look, the last answer
      const name = (button.dataset.name ??= button.ariaLabel); // a second click finds “Copied” there
      button.textContent = button.ariaLabel = "Copied";
      setTimeout(() => ([button.textContent, button.ariaLabel] = ["Copy", name]), 1500);
      return;
    }
    if (button.dataset.act === "inside-close") return closeInside();
    const tab = { "inside-open": "attention", code: "code" }[button.dataset.act];
    const control = find(tab ? "#inside-open" : "#" + button.dataset.act);
    control.dataset.number = button.dataset.number;
    control.dataset.token = button.dataset.token ?? "";
    delete control.dataset.region;
    delete control.dataset.text;
    control.click();
    if (tab) find(`#inside [role=tab][data-tab-id=${tab}]`).click();
    if (["retry", "continue", "look-closer"].includes(button.dataset.act)) toComposer();
  });
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    await copy(button.parentElement.querySelector("pre").innerText);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });

  // The Share menu.
  const share = find("#share details");
  document.addEventListener("click", async (event) => {
    const kind = event.target.closest("[data-share]")?.dataset.share;
    if (!kind) {
      // Not for the clicks of this script: one counts the tokens when typing pauses.
      if (event.isTrusted && !event.target.closest("#share")) share.open = false;
      return;
    }
    if (kind === "card") {
      const inside = insideIsOpen() ? find("#inside-open").dataset.number : "";
      find("#card").dataset.number = inside || document.querySelectorAll("#chat .figures").length - 1;
      find("#card").click();
      share.open = false;
      return;
    }
    const done = share.querySelector("[role=status]");
    if (kind === "zip" || kind === "markdown") {
      const text = await ask.conversations?.exported(kind);
      if (typeof text === "string") await copy(text);
      const nothing = ask.answers() ? "This browser did not keep this conversation, so it can't be saved."
        : "There is nothing to save yet.";
      done.textContent = text === undefined ? nothing : kind === "zip" ? "Saved." : "Copied.";
      return;
    }
    await copy(ask.link(kind === "page" ? {} : questionToShare()));
    done.textContent = "Copied.";
  });
  share.addEventListener("toggle", () => {
    if (share.open) share.querySelector("[role=status]").textContent = share.dataset.note ??=
      share.querySelector("[role=status]").textContent;
  });
  // The composer's question, or else the last one in the chat, with the settings that differ from the page's own.
  function questionToShare() {
    const asked = [...document.querySelectorAll("#chat .user-row")].at(-1);
    const inComposer = composer().value.trim() || find("#composer .thumbnail-item");
    const question = inComposer ? composer().value.trim() : asked?.querySelector(".message-content")?.innerText.trim();
    const picture = inComposer ? find("#composer .thumbnail-item img") : asked?.querySelector("img");
    const name = picture?.src.split("/").at(-1).replace(/[.]png$/, "");
    const model = find("#model input")?.value, int4 = find("#int4 input")?.checked;
    return {
      q: question,
      example: share.dataset.examples.split(" ").includes(name) ? name : "",
      pan_and_scan: find("#pan-and-scan input")?.checked ? "1" : "",
      int4: model === firstModel && int4 === firstInt4 ? "" : int4 ? "1" : int4 === undefined ? "" : "0",
      model: model === firstModel ? "" : model,
      system_prompt: find("#system-prompt textarea")?.value.trim(),
    };
  }
  const firstModel = find("#model input")?.value, firstInt4 = find("#int4 input")?.checked;

  // Focus goes where the work is.
  document.addEventListener("click", (event) => {
    if (event.target.closest("#chat button.example, #clear")) toComposer();
  });
  let closesList = false; // told before Gradio closes it
  document.addEventListener("keydown", ({ target }) => {
    closesList = target.matches?.("input[aria-expanded=true]");
  }, true);
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || find("dialog[open]")) return;
    if (event.key === "Escape" && !event.isComposing && !closesList) escape();
    const way = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (way && event.target.matches?.("[role=tab]")) {
      const tabs = [...event.target.closest("[role=tablist]").querySelectorAll("[role=tab]")];
      const to = tabs[Math.min(tabs.length - 1, Math.max(0, tabs.indexOf(event.target) + way))];
      to.click();
      to.focus();
      event.preventDefault();
    }
  });
  const insideIsOpen = () => find("#inside").checkVisibility();
  function escape() {
    if (share.open) {
      share.open = false;
      share.querySelector("summary").focus();
    } else if (insideIsOpen()) closeInside();
    else if (ask.table.isOpen()) ask.table.close(); // what lies behind it stays as it is
    else if (find("#changing [data-act=keep]")) find("#keep").click();
    else ask.uncoverChat();
  }
  // Where the table stands in its place, or the settings lie over it.
  ask.uncoverChat = () => {
    if (ask.table.isOpen()) ask.table.close();
    if (settings.classList.contains("open") && !matchMedia("(min-width: 1100px)").matches) toggle.click();
  };
  function closeInside() {
    const number = find("#inside-open").dataset.number;
    find("#inside-close").click();
    const opener = find(`#chat [data-act=inside-open][data-number="${number}"]`);
    opener ? opener.focus() : toComposer();
  }

  // A browser reports a choice of files only if it differs from the last one, and Gradio does not reset that one.
  // Without this, the same picture could not be added to a second question.
  document.addEventListener("change", (event) => {
    if (!event.target.matches("#composer input[type=file]")) return;
    setTimeout(() => (event.target.value = ""));
    toComposer();
  });

  // A picture that arrives late makes the chat longer: its end, where the answer stands, stays in sight.
  document.addEventListener("load", (event) => {
    const row = event.target.closest?.("#chat .user-row");
    if (!row || row !== [...document.querySelectorAll("#chat .user-row")].at(-1)) return;
    const box = row.closest(".bubble-wrap");
    box.scrollTo(0, box.scrollHeight);
  }, true);
  // So does the end of a chat that was there, when what stands below it grows and takes its room.
  const chat = find("#chat");
  const below = (box) => box.scrollHeight - box.scrollTop - box.clientHeight;
  let room = chat.clientHeight;
  new ResizeObserver(() => {
    const box = find("#chat .bubble-wrap:has(.bot-row)"), taken = room - chat.clientHeight;
    room = chat.clientHeight;
    if (box && taken > 0 && below(box) < taken + 40) box.scrollTo(0, box.scrollHeight);
  }).observe(chat);
  // But whoever has scrolled up stays there until the next question. Sizes don't tell who has: a chat that was all in
  // sight is at both its ends. And Gradio scrolls down 300 ms after each piece of an answer, whatever was done meanwhile.
  let top = 0, asked = 0;
  chat.addEventListener("scroll", ({ target: box }) => {
    if (!box.matches(".bubble-wrap")) return;
    if (box.scrollTop < top && below(box) > 1) box.scrollTo = () => {}; // a chat that has shrunk is at its end
    else if (below(box) < 40) delete box.scrollTo;
    top = box.scrollTop;
  }, true);
  chat.addEventListener("click", ({ target }) => {
    if (target.closest(".scroll-down-button-container")) delete find("#chat .bubble-wrap").scrollTo;
  }, true);
  new MutationObserver(() => {
    const before = asked, box = find("#chat .bubble-wrap");
    asked = chat.querySelectorAll(".user-row").length;
    if (asked > before) delete box.scrollTo;
    // Gradio no longer follows where 100 px come at once, as after a slow moment.
    if (asked > before || ask.isAnswering()) box?.scrollTo(0, box.scrollHeight);
  }).observe(chat, { childList: true, subtree: true });

  // A picture in the chat opens large.
  const large = document.createElement("dialog");
  large.id = "large-picture";
  large.innerHTML = '<button type="button" aria-label="Close the picture">Close</button><img>';
  large.addEventListener("click", () => large.close());
  document.body.append(large);
  ask.enlarge = enlarge;
  function enlarge(picture, name) {
    large.setAttribute("aria-label", name);
    Object.assign(large.querySelector("img"), { src: picture.src, alt: name });
    large.showModal();
  }
  // The chat's pictures stand in buttons of Gradio's, which have no name; the address ends with the file's. The example
  // cards stand in a list of Gradio's, which is none.
  const inChat = "#chat .user-row .image-container button:has(img)";
  const nameParts = () => {
    find("#chat .examples")?.setAttribute("role", "group");
    for (const button of document.querySelectorAll(`${inChat}:not([aria-label])`)) {
      const file = decodeURIComponent(button.querySelector("img").src.split("/").at(-1));
      button.setAttribute("aria-label", file);
    }
  };
  nameParts();
  new MutationObserver(nameParts).observe(find("#chat"), { childList: true, subtree: true });
  document.addEventListener("click", (event) => {
    const opened = event.target.closest(`${inChat}, #composer .thumbnail-item`);
    if (!opened || event.target.closest(".delete-button")) return;
    event.stopPropagation();
    enlarge(opened.querySelector("img"), opened.ariaLabel ?? "Picture");
  }, true);

  // The server says in UTC when to come back; visitors look at their own clock.
  const ownClock = (_, hours, minutes) => {
    const then = new Date();
    then.setUTCHours(hours, minutes, 0, 0);
    if (then < Date.now() - 60_000) then.setUTCDate(then.getUTCDate() + 1);
    return then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  };
  const tellTimes = () => {
    for (const said of document.querySelectorAll(".failure")) {
      const text = said.textContent.replace(/\b(\d\d):(\d\d) UTC\b/, ownClock);
      if (text !== said.textContent) said.textContent = text;
    }
  };
  for (const part of document.querySelectorAll("#chat, #inside, #table"))
    new MutationObserver(tellTimes).observe(part, { childList: true, subtree: true });

  new MutationObserver(ask.showCost).observe(find("#picker"), { childList: true, subtree: true });

  // The strip is open while pictures are chosen, folds once they are sent, and stays as its visitor left it.
  let left = null;
  const strip = find("#strip"), tall = matchMedia("(min-height: 560px)");
  const fold = () => {
    const details = strip.querySelector("details.strip");
    if (details) details.open = left ?? (tall.matches && !("answered" in details.dataset));
  };
  new MutationObserver(fold).observe(strip, { childList: true, subtree: true });
  strip.addEventListener("click", (event) => {
    if (event.target.closest("summary")) left = !event.target.closest("details").open;
  });
  ask.foldStrip = () => {
    const details = strip.querySelector("details.strip");
    if (details && !left) details.open = false;
  };

  // The prompt's tokens are counted when typing pauses, not with each key.
  const PAUSE_MS = 700;
  let pause = null;
  const countTokens = () => find("#count-tokens")?.click();
  document.addEventListener("input", (event) => {
    if (!event.target.matches("#composer :is(textarea, input), #system-prompt textarea")) return;
    clearTimeout(pause);
    pause = setTimeout(countTokens, PAUSE_MS);
  });
  document.addEventListener("toggle", (event) => {
    const fold = event.target;
    if (fold.matches("#token-count details") && fold.open && !fold.querySelector(".tokens")) countTokens();
  }, true);

  async function copy(text) {
    const copied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
    if (copied) return;
    // Without https, and in some frames, browsers allow only this older way to copy.
    const box = document.createElement("textarea");
    box.value = text;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
  }

  ask.scriptRan();
}
