// Keeps conversations in the visitor's own browser (IndexedDB), lists them in the sidebar, and brings them back.
(() => {
  const MOST_BYTES = 200e6, LONGEST_TITLE = 60, UNUSED_MS = 24 * 3600e3, LONG_AWAY_MS = 600e3;
  const DOCUMENT = "conversation.json";
  const FOREIGN = "This is no saved conversation: save one with “Save the conversation” in the Share menu.";
  const GONE = "This conversation is no longer in this browser: it was deleted in another window.";
  const AWAY = "This conversation was not opened: the server could not be reached. Try again once it is back.";
  const OFF = "This browser keeps no conversations for this page: its storage is switched off or full.";
  const { kept } = ask;
  if (ask.embedded) return;

  const within = ask.storage("conversations", { conversations: "id", pictures: "digest" });
  const all = async () => (await within("readonly", (conversations) => conversations.getAll()))
    .sort((one, other) => other.changed - one.changed);
  const entry = async (id) => id && within("readonly", (conversations) => conversations.get(id));
  const stored = (digest) => within("readonly", (_, pictures) => pictures.get(digest));

  // The server keeps each picture in a folder named by its SHA-256.
  const digestOf = (path) => path.split("/").at(-2);
  // A picture that doesn't arrive is asked for again after the next answer; its conversation is kept all the same.
  async function keepPicture(path) {
    if (await stored(digestOf(path))) return;
    const blob = await fetched(path).catch((error) => console.info("A picture is not kept yet:", error));
    if (!blob) return;
    const picture = { digest: digestOf(path), blob, at: Date.now() };
    await within("readwrite", (_, pictures) => pictures.put(picture));
  }
  async function fetched(path) {
    const answer = await fetch(ask.fileAt(path));
    return answer.ok ? answer.blob() : null;
  }
  // Where the server has a picture now; it is uploaded again if the server has forgotten it. Empty where it is lost, and
  // null while the server can't be reached.
  async function here(path, name) {
    const isThere = await ask.isThere(path).catch(() => null);
    if (isThere === null) return null;
    if (isThere) return path;
    const picture = await stored(digestOf(path));
    if (!picture) return "";
    return uploaded(picture.blob, name);
  }
  // A picture that the server doesn't take is missing there; the conversation opens without it, and says so.
  const uploaded = (blob, name) => ask.upload(blob, name).catch((error) => {
    console.info(`${name} was not taken:`, error);
    return "";
  });
  const newId = () => Date.now().toString(36) + Math.random().toString(36).slice(2);

  // After a closer look, an exchange holds the one before it, which names pictures as well.
  const picturesIn = (exchanges) => exchanges
    .flatMap((exchange) => (exchange.first ? [exchange, exchange.first] : [exchange]))
    .flatMap(({ pictures }) => pictures);
  const picturesOf = (conversation) => new Set(
    picturesIn(Object.values(conversation.exchanges)).filter(({ path }) => path).map(({ path }) => digestOf(path)),
  );

  // For each conversation of this tab, by the id that the server has of it: the entry that keeps it, and the keys that
  // this tab last read or wrote there.
  const seen = (id) => (kept.get("seen") ?? {})[id];
  const see = (id, entry) => kept.set("seen", { ...kept.get("seen"), [id]: { id: entry.id, keys: entry.keys } });

  // The entry that may be replaced by a conversation with these keys. What another window has added to it must not be
  // lost: otherwise there is none, and the conversation is saved as a new entry.
  function replaceable(conversations, id, keys) {
    const last = seen(id), entry = conversations.find((one) => one.id === (last?.id ?? id));
    if (entry && last && entry.keys.join() === last.keys.join()) return entry;
    const goesOn = (one) => one.keys.every((key, number) => key === keys[number]);
    return entry && goesOn(entry) ? entry : conversations.find(goesOn);
  }

  // Deletes pictures that no conversation shows, and the oldest conversations beyond MOST_BYTES, or one more if `full`.
  async function trim(full = false, unusedMs = full ? 0 : UNUSED_MS) {
    const conversations = await all();
    const pictures = await within("readonly", (_, store) => store.getAll());
    const sizes = new Map(pictures.map(({ digest, blob }) => [digest, blob.size]));
    let room = MOST_BYTES;
    const staying = conversations.filter((conversation, number) => {
      const size = (digest) => sizes.get(digest) ?? 0;
      room -= JSON.stringify(conversation).length + [...picturesOf(conversation)].map(size).reduce((a, b) => a + b, 0);
      return number === 0 || (room >= 0 && !(full && number === conversations.length - 1));
    });
    const shown = new Set(staying.flatMap((conversation) => [...picturesOf(conversation)]));
    const old = Date.now() - unusedMs; // a draft's pictures are in no conversation yet
    await within("readwrite", (store, pictureStore) => {
      for (const one of conversations) if (!staying.includes(one)) store.delete(one.id);
      for (const { digest, at } of pictures) if (!shown.has(digest) && at <= old) pictureStore.delete(digest);
    });
    return staying.length < conversations.length;
  }

  // The server has no answers. Those that stand on the page come back from here, once.
  let sought = null, standing = 0;
  function forgotten() {
    const id = kept.get("conversation");
    if (!standing || !id || id === sought) return kept.set("conversation", null);
    sought = id;
    ask.conversations.open(id);
  }

  async function save(given) {
    const { version, id, keys, new: fresh } = JSON.parse(given);
    if (!keys.length) return forgotten();
    sought = null;
    const conversations = await all(), known = Object.assign({}, ...conversations.map((one) => one.exchanges));
    const before = replaceable(conversations, id, keys), free = !conversations.some((one) => one.id === id);
    const exchanges = Object.fromEntries(keys.map((key) => [key, fresh[key] ?? known[key]]));
    if (Object.values(exchanges).includes(undefined)) return; // deleted meanwhile; the next answer keeps it all
    const same = before && before.keys.join() === keys.join();
    const title = before?.renamed ? before.title : exchanges[keys[0]].question.slice(0, LONGEST_TITLE);
    const conversation = {
      id: before?.id ?? (free && id ? id : newId()),
      changed: same ? before.changed : Date.now(),
      renamed: before?.renamed ?? false,
      title, version, keys, exchanges,
    };
    kept.set("conversation", conversation.id);
    for (const { path } of picturesIn(Object.values(exchanges))) if (path) await keepPicture(path);
    if (!same) await within("readwrite", (store) => store.put(conversation));
    see(id, conversation);
  }

  // Whatever goes wrong here concerns the keeping alone; the conversation on the page goes on.
  async function keeping(work) {
    try {
      await work();
    } catch (error) {
      if (error?.name === "QuotaExceededError" && (await trim(true).catch(() => false))) return keeping(work);
      console.info("Conversations are not kept:", error);
      warn(OFF);
    }
  }

  const find = (selector) => document.querySelector(`#conversations ${selector}`);
  const note = (text) => find(".note")?.replaceChildren(text);
  function warn(text) {
    note(text);
    if (find("details")) find("details").open = true;
  }
  const tellCount = (count) => (find("summary").textContent = count ? `Conversations (${count})` : "Conversations");
  async function draw() {
    const list = find("ul");
    if (!list || list.querySelector("input")) return; // a name is being written
    const wanted = find("input[type=search]").value.trim().toLowerCase(), current = kept.get("conversation");
    const texts = (one) => [one.title, ...Object.values(one.exchanges).flatMap((e) => [e.question, e.answer])];
    const conversations = await all();
    tellCount(conversations.length);
    const matching = conversations
      .filter((one) => !wanted || texts(one).some((text) => text.toLowerCase().includes(wanted)));
    const rows = matching.map((one) => rowOf(one, list, one.id === current));
    for (const part of [...list.childNodes]) if (!rows.includes(part)) part.remove();
    rows.forEach((row, at) => row === list.childNodes[at] || list.insertBefore(row, list.childNodes[at] ?? null));
    if (!rows.length) list.append(wanted ? "Nothing found." : "None yet.");
  }
  // The row that stands in the list stays there: it may have the focus, or be what is just being clicked.
  function rowOf({ id, title }, list, isCurrent) {
    let row = [...list.children].find((other) => other.dataset.id === id && other.dataset.title === title);
    if (!row) {
      row = document.createElement("li");
      Object.assign(row.dataset, { id, title });
      row.append(button(title, "open", `Open “${title}”`), button("Rename", "rename", `Rename “${title}”`),
        button("Delete", "delete", `Delete “${title}”`));
    }
    isCurrent ? row.firstChild.setAttribute("aria-current", "true") : row.firstChild.removeAttribute("aria-current");
    return row;
  }
  function button(text, act, label) {
    const made = document.createElement("button");
    Object.assign(made, { type: "button", textContent: text, ariaLabel: label, title: act === "open" ? text : "" });
    made.dataset.conversation = act;
    return made;
  }
  async function remove(ids) {
    await within("readwrite", (conversations) => void ids.forEach((id) => conversations.delete(id)));
    await trim(false, 0);
    if (!ids.includes(kept.get("conversation"))) return;
    kept.set("conversation", null);
    document.querySelector("#clear").click();
  }
  function rename(row, title) {
    const field = document.createElement("input");
    Object.assign(field, { value: title, maxLength: 200, ariaLabel: "New name" });
    const end = async (text) => {
      field.onblur = null;
      row.remove();
      await keeping(async () => {
        const one = await entry(row.dataset.id);
        if (text.trim() && one)
          await within("readwrite", (store) => store.put({ ...one, title: text.trim(), renamed: true }));
      });
      await draw();
      find(`[data-id="${row.dataset.id}"] button`)?.focus();
    };
    field.onblur = () => end(field.value);
    field.onkeydown = (event) => {
      if (event.key === "Enter" || event.key === "Escape") end(event.key === "Enter" ? field.value : "");
      event.stopPropagation();
    };
    row.replaceChildren(field);
    field.select();
  }
  document.addEventListener("click", (event) => {
    const pressed = event.target.closest("[data-conversation]"), row = pressed?.closest("li");
    if (event.target.closest("#clear")) kept.set("conversation", null);
    if (!pressed) return;
    const act = pressed.dataset.conversation;
    if (act === "open") {
      ask.conversations.open(row.dataset.id);
      ask.uncoverChat();
    }
    else if (act === "rename") rename(row, row.querySelector("button").textContent);
    else if (ask.armed(pressed))
      keeping(async () => {
        const at = [...find("ul").children].indexOf(row);
        await remove(act === "delete" ? [row.dataset.id] : (await all()).map(({ id }) => id));
        await draw();
        const next = find("ul").children[at] ?? find("ul").lastElementChild;
        if (document.activeElement === document.body) (next?.querySelector("button") ?? find("summary")).focus();
      });
  });
  document.addEventListener("input", (event) => {
    if (event.target.matches("#conversations input[type=search]")) keeping(draw);
  });
  // Meanwhile another window may have added one, and the server may have forgotten the one that stands here.
  let away = null;
  addEventListener("blur", () => (away = Date.now()));
  addEventListener("focus", () => {
    if (away && Date.now() - away > LONG_AWAY_MS && !ask.isAnswering()) document.querySelector("#give").click();
    away = null;
    if (find("details")?.open) return keeping(draw);
    keeping(async () => find("summary") && tellCount(await within("readonly", (conversations) => conversations.count())));
  });
  document.addEventListener("toggle", ({ target }) => {
    if (target.matches("#conversations details") && target.open) keeping(draw);
  }, true);

  // A conversation as files: the document, the same as Markdown, and its pictures by their SHA-256.
  async function saveZip(one) {
    const exchanges = one.keys.map((key) => structuredClone(one.exchanges[key])), files = new Map();
    for (const picture of picturesIn(exchanges)) {
      if (!picture.path) continue;
      const blob = (await stored(digestOf(picture.path)))?.blob;
      picture.file = fileOf(picture);
      delete picture.path;
      if (blob) files.set(picture.file, new Uint8Array(await blob.arrayBuffer()));
    }
    const encode = (text) => new TextEncoder().encode(text);
    const saved = JSON.stringify({ version: one.version, title: one.title, exchanges }, null, 1);
    ask.download("conversation.zip", "", ask.zip.write([
      [DOCUMENT, encode(saved)], ["conversation.md", encode(markdown(one))], ...files,
    ]));
    return null;
  }
  const fileOf = ({ path, name }) => `pictures/${digestOf(path)}${name.match(/[.]\w{1,5}$/)?.[0] ?? ""}`;
  const markdown = (one) => `# ${one.title}\n\n` + one.keys.map((key) => {
    const { question, pictures, answer, stats } = one.exchanges[key];
    const shown = pictures.map((picture) => `![${picture.name}](${picture.path ? fileOf(picture) : picture.name})\n\n`);
    return `${shown.join("")}**You:** ${question}\n\n**${stats.model}:** ${answer}\n`;
  }).join("\n");

  // What a saved conversation says is checked by the server, like anything else that comes from a browser.
  async function openZip(file) {
    let saved, files;
    try {
      files = await ask.zip.read(file, MOST_BYTES);
      saved = JSON.parse(new TextDecoder().decode(files.get(DOCUMENT)));
      delete saved.id; // that of another browser's entry
      for (const picture of picturesIn(saved.exchanges)) {
        if (!picture.file) continue;
        const content = files.get(picture.file), digest = picture.file.split("/").at(-1).split(".")[0];
        picture.path = content ? await uploaded(new Blob([content]), picture.name) : "";
        if (picture.path && digestOf(picture.path) !== digest) picture.path = "";
      }
    } catch (error) {
      if (!(error instanceof TypeError || error instanceof RangeError || error instanceof SyntaxError)) throw error;
      return note(error.message === "too large" ? "This file is too large: 200 MB at most." : FOREIGN);
    }
    kept.set("conversation", null);
    ask.uncoverChat();
    chosen = saved;
    document.querySelector("#bring").click();
  }
  document.addEventListener("change", (event) => {
    if (!event.target.matches("#conversations input[type=file]")) return;
    const [file] = event.target.files;
    event.target.value = "";
    if (file) keeping(() => openZip(file));
  });

  // The id of the kept conversation to open, or the document of a saved one.
  let chosen = null, saving = Promise.resolve();
  ask.conversations = {
    draw: () => keeping(draw),
    // One after the other, as they were given: the last one says which conversation is shown.
    save: (given) => (saving = saving.then(() => keeping(async () => {
      await save(given);
      await trim();
      await draw();
    }))),
    // The keys of the exchanges that need not be sent again: those of the conversation that is shown.
    async known() {
      let one = null;
      standing = ask.answers();
      await keeping(async () => (one = await entry(kept.get("conversation"))));
      return JSON.stringify(one?.keys ?? []);
    },
    open(id) {
      chosen = id;
      document.querySelector("#bring").click();
    },
    // The chosen conversation's document, with its pictures on the server; empty if it can't be read here.
    async document() {
      let text = "";
      await keeping(async () => {
        if (typeof chosen !== "string") return void (text = JSON.stringify(chosen));
        const one = await entry(chosen);
        if (!one) {
          if (kept.get("conversation") === chosen) kept.set("conversation", null);
          return note(GONE);
        }
        const { version, id, keys, exchanges } = one, documents = keys.map((key) => structuredClone(exchanges[key]));
        for (const picture of picturesIn(documents)) {
          if (!picture.path) continue;
          picture.path = await here(picture.path, picture.name);
          if (picture.path === null) return warn(AWAY);
        }
        if (!ask.isAnswering()) see(id, one); // else the server doesn't open it
        text = JSON.stringify({ version, id, exchanges: documents });
      });
      return text;
    },
    // After the page has opened: what the server has forgotten comes from here.
    opened(found) {
      if (!found && kept.get("conversation")) ask.conversations.open(kept.get("conversation"));
      keeping(draw);
    },
    // The current conversation: saved as a zip, or its Markdown. Undefined if nothing is kept.
    async exported(kind) {
      let told;
      await keeping(async () => {
        const one = await entry(kept.get("conversation"));
        if (one) told = kind === "zip" ? await saveZip(one) : markdown(one);
      });
      return told;
    },
    keepPictures: (paths) => keeping(() => Promise.all(paths.map(keepPicture))),
    async files(files) {
      const there = [];
      await keeping(async () => {
        for (const file of files) {
          // Where the server can't be reached now, it says later whether it still has the picture.
          const path = (await here(file.path, file.orig_name ?? "picture")) ?? file.path;
          if (path) there.push({ ...file, path, url: null });
        }
      });
      return there;
    },
  };
})();
