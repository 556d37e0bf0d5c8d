// Runs before the page is drawn: what must not move or flash later, and what the page's events call.
(() => {
  const root = document.documentElement, framed = window.top !== window;
  // As <gradio-app> in another site's page, until page.js puts a frame there: nothing of that page is touched.
  const embedded = document.querySelector("gradio-app:is([src], [space], [host])");
  const wide = matchMedia("(min-width: 1100px)"), dark = matchMedia("(prefers-color-scheme: dark)");
  if (!embedded) root.dataset.settings = wide.matches && !framed ? "open" : "closed";

  // At each turn of an event Gradio copies all it knows of several components, with a call for each string, number and
  // function in it. Strings and numbers are their own copies, and functions have none.
  if (!embedded) {
    const copy = window.structuredClone, none = new DOMException("", "DataCloneError");
    window.structuredClone = (value, options) => {
      if (typeof value === "function") throw none;
      return typeof value === "object" || typeof value === "symbol" ? copy(value, options) : value;
    };
  }

  // The tab's own storage: a reload, also the one after a lost connection, finds everything again. Where a browser
  // forbids it, as in some frames, or it is full, the page works all the same, and a reload finds nothing.
  const kept = {
    get(name, storage = "sessionStorage") {
      try {
        return JSON.parse(window[storage].getItem(name) ?? "null");
      } catch {
        return null;
      }
    },
    set(name, value, storage = "sessionStorage") {
      if (embedded) return;
      try {
        window[storage].setItem(name, JSON.stringify(value));
      } catch {
        console.info(`This browser keeps no "${name}" for a reload.`);
      }
    },
  };

  const settingsBefore = kept.get("settings");

  const NOT_TAKEN = "The server did not take the file. Try again.";
  const ARMED_MS = 4000;
  let card = null, own = kept.get("own") ?? []; // a reload keeps the card's settings, and so what they took the place of
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#clear")) card = null; // "New chat" may well be done before the card's answer has ended
    const example = event.target.closest?.("#chat button.example");
    if (example) card = [...example.parentElement.querySelectorAll("button.example")].indexOf(example);
  }, true);

  // Letters typed anywhere go to the composer.
  document.addEventListener("keydown", (event) => {
    const typed = event.key.length === 1 && !event.ctrlKey && !event.metaKey && !event.altKey;
    if (!typed || event.defaultPrevented || embedded || document.querySelector("dialog[open]")) return;
    if (document.activeElement === document.body) document.querySelector("#composer textarea")?.focus();
  });

  // The parameters of a link, unless this tab has used them already.
  const newLink = () =>
    kept.get("link") === location.search ? {} : Object.fromEntries(new URLSearchParams(location.search));

  // Why an upload was refused, in the server's words. What stands before it answers with a page of its own.
  async function refusal(answer) {
    const kind = answer.headers.get("content-type") ?? "", text = await answer.text();
    if (kind.startsWith("text/plain")) return text;
    try {
      return JSON.parse(text).error || NOT_TAKEN;
    } catch {
      return NOT_TAKEN;
    }
  }

  const unchanged = { __type__: "update" }, nothing = { text: "", files: [] };
  // Two contents of the composer in one, each picture once.
  const joined = (first, second) => ({
    text: [first.text, second?.text].filter(Boolean).join("\n\n"),
    files: [
      ...first.files,
      ...(second?.files ?? []).filter(({ path }) => !first.files.some((file) => file.path === path)),
    ],
  });
  const answers = () => document.querySelectorAll("#chat .figures").length;
  const isAnswering = () => Boolean(document.querySelector("#composer .stop-button"));
  // The composer can be seen and used before page.js has run and before the server has brought back what was left.
  let scriptRan, cameBack, sending = false, waits = true, draftCame = false, typed = "";
  let underway = 0; // submits whose events have not ended
  const submitEnded = () => (underway = Math.max(0, underway - 1)); // one that fails in its handler ends both ways
  const stands = Promise.all([
    new Promise((resolve) => (scriptRan = resolve)),
    new Promise((resolve) => (cameBack = resolve)),
  ]);
  const isBack = () => {
    waits = false;
    cameBack();
  };
  document.addEventListener("input", ({ target }) => {
    if (!target.matches("#composer textarea")) return;
    if (waits) typed = target.value;
    else kept.set("text", target.value);
  });
  window.ask = {
    kept,
    framed,
    embedded,
    answers,
    isAnswering,
    scriptRan,
    stands,

    // The settings that an example card brings, until the next new chat.
    useCard(cards, panAndScan, systemPrompt) {
      const [cut, prompt] = cards[card] ?? [false, ""], [ownCut = [], ownPrompt = []] = own;
      own = [
        ownCut.length || !cut || panAndScan ? ownCut : [panAndScan],
        ownPrompt.length || !prompt ? ownPrompt : [systemPrompt ?? ""],
      ];
      kept.set("own", own);
      return [panAndScan || cut, prompt || systemPrompt, prompt ? { __type__: "update", open: true } : unchanged];
    },
    restoreOwnSettings(panAndScan, systemPrompt) {
      const [[cut = panAndScan], [prompt]] = own.length ? own : [[], []];
      own = [];
      kept.set("own", own);
      if (prompt === undefined) return [cut, systemPrompt, unchanged];
      return [cut, prompt, { __type__: "update", open: Boolean(prompt) }];
    },

    useTheme(theme) {
      kept.set("theme", theme, "localStorage");
      document.body.classList.toggle("dark", theme === "Dark" || (theme === "System" && dark.matches));
      return theme;
    },

    // A question is kept until its answer is there. One that was sent before the page stood is sent then, once.
    async send(message) {
      if (sending) return null;
      sending = true;
      const isEarly = waits;
      await stands;
      sending = false;
      // With the number of answers before its own, since the same may be asked again; while one is edited, none is sure.
      const standing = document.querySelector("#changing [data-act=keep]") ? null : answers();
      if (message.text.trim() || message.files.length) kept.set("sent", { ...message, standing });
      ask.foldStrip();
      if (isEarly && draftCame) return message; // that stands in the composer meanwhile
      kept.set("text", "");
      document.querySelector("#empty").click();
      return message;
    },
    submitted() {
      underway += 1;
    },
    // Some event has ended. The question that was sent is cleared only when no submit is pending, since submits may
    // finish out of order, and any other event in between.
    answered(isSubmit) {
      if (isSubmit) submitEnded();
      if (!underway) kept.set("sent", null);
      kept.set("text", document.querySelector("#composer textarea")?.value ?? ""); // a question may have come back
      document.querySelector("#give")?.click();
    },
    // An event failed, as where the server or what stands before it refuses. Its question returns to the composer, in
    // the browser, since the server may be out of reach. Updates of the composer and, with `notice`, of the notice.
    unsent(notice, message) {
      const sent = kept.get("sent");
      submitEnded();
      if (!sent || isAnswering()) return [unchanged, unchanged];
      kept.set("sent", null);
      const whole = joined(sent, message);
      kept.set("text", whole.text);
      return [whole, notice];
    },
    // What the server hands back goes before what is in the composer, once. Updates of both.
    handedBack(returned, message) {
      if (!returned?.text && !returned?.files.length) return [unchanged, unchanged];
      const whole = joined(returned, message);
      kept.set("text", whole.text);
      return [nothing, whole];
    },

    // `offer` says what there is to set: another start of the server may offer other models and switches. Whether a
    // model that came since the start, whose name stands at this place, is still offered, only the server knows.
    keepSettings(offer, place, values) {
      kept.set("settings", { offer, values, model: values[place] });
    },
    settingsBack(offer, place, models, values) {
      const before = settingsBefore;
      if (before?.offer !== offer || before.values.length !== values.length) return values;
      return before.values.map((value, at) => (at === place && !models.includes(value) ? values[at] : value));
    },
    keepFiles(message) {
      const paths = (message?.files ?? []).map((file) => file.path);
      kept.set("files", message?.files ?? []);
      ask.conversations?.keepPictures(paths);
      return paths.join("\n");
    },
    async left() {
      const sent = kept.get("sent"), text = kept.get("text") ?? "", files = kept.get("files") ?? [];
      const back = async (some) => ask.conversations ? ask.conversations.files(some) : some;
      return JSON.stringify({
        session: kept.get("session"),
        sent: sent && { ...sent, files: await back(sent.files ?? []) },
        draft: { text, files: await back(files) },
        model: settingsBefore?.model,
        link: newLink(),
      });
    },
    // The page has opened. `text` has this window's name for its next reload, whether the server knew the one before,
    // and what the composer holds again, if anything. It also says whether the link was used, which it is not where
    // something stood already. What was typed meanwhile follows the composer's content. Gives that content.
    opened(text, message) {
      const { window: name, found, held, linked } = JSON.parse(text);
      if (linked) kept.set("link", location.search);
      draftCame = held !== null;
      const isJoined = draftCame && typed && !sending; // what is being sent stands in no composer
      const both = typed.startsWith(held) ? typed : `${held}\n\n${typed}`;
      kept.set("session", name);
      kept.set("sent", null); // it is part of the draft now
      kept.set("text", isJoined ? both : (held ?? (sending ? "" : typed)));
      isBack();
      ask.conversations?.opened(found);
      return isJoined ? { ...message, text: both } : unchanged;
    },
    // The server refused to open it as it was left: it can be used, and what was left comes with the next reload.
    notOpened: () => isBack(),

    // The address of a file on the server, by its path there; and how a file gets there: its path, or an Error.
    fileAt(path) {
      const { root, api_prefix: prefix } = gradio_config;
      return `${root}${prefix}/file=${path.split("/").map(encodeURIComponent).join("/")}`;
    },
    async isThere(path) {
      return (await fetch(ask.fileAt(path), { method: "HEAD", cache: "no-store" })).ok; // not what the browser remembers
    },
    async upload(blob, name, more = "") {
      const form = new FormData(), { root, api_prefix: prefix } = gradio_config;
      form.append("files", blob, name);
      const id = Math.random().toString(36).slice(2);
      const answer = await fetch(`${root}${prefix}/upload?upload_id=${id}${more}`, { method: "POST", body: form });
      if (!answer.ok) throw Object.assign(new Error(await refusal(answer)), { status: answer.status });
      return (await answer.json())[0];
    },
    download(name, type, content) {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60e3);
    },

    // A database of this browser: gives a function that runs `work` on its stores in one transaction, and returns the
    // result of the request that `work` returns. `keys` are the stores' key paths.
    storage(name, keys) {
      let opening = null;
      const stores = Object.keys(keys);
      const database = () => opening ??= opened().catch((error) => {
        opening = null;
        throw error;
      });
      const opened = () => new Promise((resolve, reject) => {
        const request = indexedDB.open(name, 1);
        request.onupgradeneeded = () => {
          for (const store of stores) request.result.createObjectStore(store, { keyPath: keys[store] });
        };
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => reject(request.error);
      });
      const once = async (mode, work) => {
        const transaction = (await database()).transaction(stores, mode);
        return new Promise((resolve, reject) => {
          const request = work(...stores.map((store) => transaction.objectStore(store)));
          transaction.oncomplete = () => resolve(request?.result);
          transaction.onabort = () => reject(transaction.error);
        });
      };
      // A browser may close the connection, as iOS does with that of a page which it suspends: then it is opened anew.
      return (mode, work) => once(mode, work).catch((error) => {
        if (!["InvalidStateError", "UnknownError"].includes(error?.name)) throw error;
        opening = null;
        return once(mode, work);
      });
    },
    // The first click on a button asks; a second one soon after it does what it says.
    armed(pressed, asks = "Really delete?") {
      if (pressed.dataset.armed) return true;
      const { textContent: text, ariaLabel: label } = pressed;
      Object.assign(pressed, { textContent: asks, ariaLabel: `Really: ${label || text}?` });
      pressed.dataset.armed = "yes";
      setTimeout(() => {
        Object.assign(pressed, { textContent: text, ariaLabel: label });
        delete pressed.dataset.armed;
      }, ARMED_MS);
      return false;
    },

    // The link to this page, or to a question with its settings. In the frame of a Space the page has another address.
    link(parameters = {}) {
      const address = new URL(window.ask.home ?? location.origin + location.pathname);
      for (const [name, value] of Object.entries(parameters)) if (value) address.searchParams.set(name, value);
      return address.href;
    },
  };
  dark.addEventListener("change", () => ask.useTheme(kept.get("theme", "localStorage") ?? "System"));
})();
