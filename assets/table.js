// One question about many pictures: asks for one row of the table after the other, and keeps the table in this browser.
(() => {
  if (ask.embedded) return;
  const PICTURE = /^[^.].*[.](png|jpe?g|webp|gif|bmp|tiff?|avif|hei[cf]|jp2)$/i;
  const MOST_BYTES = 200e6, SIDE = 112, A_DAY_MS = 24 * 3600e3, LEAVES_MS = 2000;
  const NONE = 0; // the id where a window has deleted its table
  const LOST = "The answer did not arrive. Ask again for what is missing.";
  const AWAY = "The server can't be reached. Go on once it is back.";
  const CHOOSE = "This browser no longer has some of the pictures. Choose them again, then it goes on.";
  const ELSEWHERE = "Your table is open in another window. Here you can begin a new one.";
  const OFF = "This browser keeps no table: its storage is switched off or full. Download it before you close the page.";
  const { made, kept } = ask, root = document.documentElement;
  const find = (selector) => document.querySelector(`#table ${selector}`);
  const numbered = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
  if (kept.get("view") === "table") root.dataset.view = "table"; // after a reload, before anything is drawn

  // Once it has begun, a table has a question, fields, the CSV file's header, and the columns that are shown. A row has
  // a picture's name, size and file; once it is done, cells for the CSV file and what is told, or what failed.
  let table = { rows: [] };
  let running = false, stopping = false, sorted = false;
  const begun = () => Boolean(table.header);
  const sides = (done) => table.rows.filter((row) => Boolean(row.done) === done);

  // The browser keeps the latest table, and as many of its pictures as there is room for.
  const within = ask.storage("table", { tables: "id", pictures: ["table", "number"] });
  async function keeping(work) {
    if (!ask.conversations) return; // nothing is kept here
    try {
      await work();
    } catch (error) {
      console.info("The table is not kept:", error);
      find(".kept").textContent = OFF;
    }
  }
  const save = () => keeping(() => within("readwrite", (tables) => tables.put({
    ...table, rows: table.rows.map(({ file, thumb, line, url, doing, halt, ...row }) => row),
  })));
  // A table is in one window at a time, or two would write over each other's rows. After a reload, the page before may
  // still have it for a moment. Whether this window has it now.
  const take = (id, waits = false) => new Promise((resolve) => {
    if (!navigator.locks) return resolve(true); // browsers have none over plain HTTP
    const how = waits ? { signal: AbortSignal.timeout(LEAVES_MS) } : { ifAvailable: true };
    const taken = navigator.locks.request(`table ${id}`, how, (lock) => {
      resolve(Boolean(lock));
      return lock && new Promise(() => {}); // until the page is left
    });
    taken.catch(() => resolve(false));
  });
  // Another window may have a table of its own, which stays for a day.
  const picturesOf = (id) => IDBKeyRange.bound([id], [id, Infinity]);
  function forget() {
    const before = Date.now() - A_DAY_MS, own = kept.get("table");
    return keeping(() => within("readwrite", (tables, pictures) => {
      tables.delete(IDBKeyRange.upperBound(before));
      pictures.delete(IDBKeyRange.upperBound([before, Infinity]));
      if (own) void (tables.delete(own), pictures.delete(picturesOf(own)));
    }));
  }
  const keepPicture = (row) => keeping(async () => {
    const number = table.rows.indexOf(row), before = table.rows.slice(0, number + 1);
    const fits = before.reduce((sum, one) => sum + one.size, 0) <= MOST_BYTES;
    const picture = { table: table.id, number, blob: fits ? row.file : null, thumb: row.thumb ?? null };
    await within("readwrite", (_, pictures) => pictures.put(picture));
  });
  let restored = null;
  const restore = () => restored ??= keeping(async () => {
    const tables = await within("readonly", (store) => store.getAll()), own = kept.get("table");
    if (own === NONE) return;
    tables.sort((a, b) => (b.id === own) - (a.id === own) || b.id - a.id);
    for (const latest of tables) {
      if (table.rows.length || !(await take(latest.id, latest.id === own))) continue;
      const pictures = await within("readonly", (_, store) => store.getAll(picturesOf(latest.id)));
      if (table.rows.length) break; // chosen meanwhile
      for (const { number, blob, thumb } of pictures) Object.assign(latest.rows[number], { file: blob, thumb });
      kept.set("table", latest.id);
      table = latest;
      draw();
      return say(sides(false).length ? "“Go on” asks for the rows that are missing." : "");
    }
    kept.set("table", null);
    if (tables.length && !table.rows.length) say(ELSEWHERE);
  });

  // The pictures that are chosen.
  const nameOf = (file) => file.webkitRelativePath || file.name;
  async function choose(files) {
    const pictures = files.filter((file) => PICTURE.test(file.name) || file.type.startsWith("image/"));
    pictures.sort((one, other) => nameOf(one).localeCompare(nameOf(other), "en", { numeric: true }));
    if (begun()) {
      for (const row of table.rows)
        row.file ??= pictures.find((file) => nameOf(file) === row.name && file.size === row.size);
      return go();
    }
    const most = Number(find("[data-most]").dataset.most), others = files.length - pictures.length;
    const chosen = pictures.slice(0, most).map((file) => ({ name: nameOf(file), size: file.size, file }));
    table = { rows: chosen };
    draw();
    find(".chosen").textContent = numbered(chosen.length, "picture");
    const left = others ? `${numbered(others, "file")} of another kind ${others === 1 ? "is" : "are"} left out.` : "";
    const many = `These are ${pictures.length.toLocaleString("en")} pictures, and a table has at most ${most}: the first ones by name are taken.`;
    say(pictures.length > most ? many : left);
    for (const row of chosen) {
      if (!(row.thumb = await thumbnail(row.file))) continue;
      if (!table.rows.includes(row)) return;
      fill(row);
      if (begun()) await keepPicture(row);
    }
  }
  async function thumbnail(file) {
    const picture = await createImageBitmap(file).catch(() => null); // its row says what is wrong with it
    if (!picture) return null;
    const scale = Math.min(1, SIDE / Math.max(picture.width, picture.height));
    const canvas = made("canvas", { width: Math.ceil(picture.width * scale), height: Math.ceil(picture.height * scale) });
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    picture.close();
    return new Promise((done) => canvas.toBlob(done, "image/webp", 0.8));
  }
  function openFiles(folder) {
    const input = made("input", { type: "file", multiple: true, accept: "image/*", webkitdirectory: folder });
    input.addEventListener("change", () => choose([...input.files]));
    input.click();
  }

  // The server is asked one thing at a time. What it says carries the number of the turn, because a failed event
  // leaves the previous value.
  let turn = 0, given = "", heard = null, hearing = null;
  function asks(button, what, onStage = () => {}) {
    given = JSON.stringify({ turn: ++turn, ...what });
    hearing = onStage;
    return new Promise((resolve) => {
      heard = resolve;
      document.querySelector(button).click();
    });
  }
  const isStage = (said) => "stage" in said || "text" in said;

  async function begin() {
    await restored;
    if (heard) return; // asked twice
    const question = find("textarea").value.trim(), names = table.rows.map(({ name }) => name);
    const said = await asks("#begin-table", { question, names });
    if (!said.header) return say(said.refused ?? said.halt, true);
    const { header, shown, fields, rows } = said;
    Object.assign(table, { id: Date.now(), question, header, shown, fields });
    table.rows.forEach((row, number) => (row.cells = rows[number]));
    await take(table.id);
    await forget();
    kept.set("table", table.id);
    await save();
    draw();
    find("[data-table=stop]").focus();
    const went = go();
    for (const row of table.rows) await keepPicture(row);
    await went;
  }
  async function go() {
    if (running) return;
    const asked = sides(false).length ? sides(false) : table.rows.filter(({ failed }) => failed);
    running = true;
    stopping = false;
    say("");
    tell();
    let halt = "";
    for (const row of asked) {
      row.halt = "";
      const { turn: _, ...said } = await answered(row).catch((error) => {
        console.error(error);
        return { halt: error instanceof TypeError ? AWAY : LOST };
      });
      row.doing = "";
      if (said.halt || said.stopped) row.halt = halt = said.halt ?? "";
      else Object.assign(row, said, { done: true });
      fill(row);
      if (said.halt || said.stopped) break;
      await save();
      if (sorted) place(row);
      tell();
      if (stopping) break;
    }
    const stop = find("[data-table=stop]"), hadFocus = document.activeElement === stop;
    running = false;
    tell();
    say(halt || summary(), Boolean(halt));
    if (hadFocus) find("[data-table=go]:not([hidden]), [data-table=sort]").focus();
  }
  // The picture is sent just before it is asked about, unless the server still has it.
  async function answered(row) {
    if (!row.file) return { halt: CHOOSE };
    doing(row, { stage: "Sending the picture" });
    try {
      if (!row.path || !(await ask.isThere(row.path))) row.path = await ask.upload(await ask.smaller(row.file), row.file.name);
    } catch (error) {
      if (!error.status) throw error;
      if (![413, 415].includes(error.status)) return { halt: error.message };
      const cells = row.cells.with(table.header.indexOf("error"), error.message);
      return { cells, told: [], sure: {}, failed: error.message };
    }
    if (stopping) return { stopped: true };
    const { name, path } = row, { question, fields } = table;
    return asks("#ask-row", { question, fields, name, path }, (said) => doing(row, said));
  }
  function summary() {
    const failed = table.rows.filter(({ failed }) => failed).length, left = sides(false).length;
    if (left) return `Stopped. “Go on” asks for the ${left === 1 ? "row that is" : "rows that are"} missing.`;
    if (!failed) return "All pictures have an answer.";
    return `All pictures are asked about. ${numbered(failed, "row")} without an answer ${failed === 1 ? "says" : "say"} why.`;
  }

  // What is shown.
  function say(text, fails = false) {
    find(".said").className = fails ? "said failure" : "said";
    find(".said").textContent = text;
  }
  function draw() {
    find(".form").hidden = begun();
    find(".made").hidden = !begun();
    find(".rows").hidden = !table.rows.length;
    find(".question").textContent = table.question ?? "";
    if (begun()) find(".chosen").textContent = "";
    const head = (name, theirs) => made("th", { scope: "col", textContent: name, translate: !theirs });
    const shown = table.shown ?? ["Answer"];
    find("thead").replaceChildren(made("tr", {}, head("Picture"), ...shown.map((name) => head(name, Boolean(table.fields))),
      head("Sureness")));
    for (const row of table.rows) fill(row);
    find("tbody").replaceChildren(...ordered().map(({ line }) => line));
    tell();
  }
  function fill(row) {
    if (!row.line) {
      const name = made("span", { textContent: row.name, translate: false });
      row.line = made("tr", {}, made("th", { scope: "row" }, made("span", { className: "thumb" }), name));
    }
    const thumb = row.line.querySelector(".thumb");
    if (row.thumb && !thumb.firstChild) {
      const img = made("img", { src: URL.createObjectURL(row.thumb), alt: "" });
      const opens = made("button", { type: "button", ariaLabel: `Open ${row.name} large` }, img);
      opens.addEventListener("click", () => ask.enlarge({ src: (row.url ??= URL.createObjectURL(row.file ?? row.thumb)) }, row.name));
      thumb.append(opens);
    }
    while (row.line.cells.length > 1) row.line.deleteCell(1);
    row.line.append(...cellsOf(row));
  }
  function cellsOf(row) {
    const count = table.shown?.length ?? 1, failure = row.doing ? "" : row.halt || row.failed;
    if (row.doing?.text) return [made("td", { colSpan: count, textContent: row.doing.text, translate: false }), made("td")];
    if (row.doing || failure) {
      const told = { className: failure ? "failure" : "stage", textContent: failure || row.doing.stage };
      return [made("td", { colSpan: count + 1 }, made("p", told))];
    }
    if (!row.done) return Array.from({ length: count + 1 }, () => made("td"));
    const share = ({ percent, unsure }) =>
      percent ? [" ", made("span", { className: unsure ? "share unsure" : "share", textContent: percent })] : [];
    const told = row.told.map((one) => made("td", { translate: false }, one.text, ...share(one)));
    const bar = made("span", { className: "bar" });
    bar.style.width = `${100 * (row.sure.share ?? 0)}%`;
    return [...told, made("td", { className: row.sure.unsure ? "sure unsure" : "sure" }, bar, ...share(row.sure))];
  }
  function doing(row, said) {
    row.doing = said;
    fill(row);
  }
  function tell() {
    const done = sides(true).length, count = table.rows.length;
    const failed = table.rows.filter((row) => row.failed).length, go = find("[data-table=go]");
    Object.assign(find("progress"), { max: count || 1, value: done });
    find(".count").textContent = `${done} of ${numbered(count, "picture")}`;
    go.hidden = running || !(done < count || failed);
    go.textContent = done < count ? "Go on" : "Ask the failed ones again";
    go.classList.toggle("primary", done < count);
    find("[data-table=stop]").hidden = !running;
    for (const act of ["sort", "csv"]) find(`[data-table=${act}]`).disabled = !done;
    find("[data-table=new]").disabled = running;
    find("thead th:last-child").ariaSort = sorted ? "ascending" : "none";
    const button = document.querySelector("#sources [data-from=table]");
    if (button) button.textContent = running ? `Many pictures: ${done} of ${count}` : "Ask about many pictures";
  }

  // The doubtful rows first: those without an answer, then the least sure ones. What is not asked yet comes last.
  const doubt = (row) => (!row.done ? 2 : row.failed ? -1 : (row.sure.share ?? -1));
  const ordered = () => (sorted ? table.rows.toSorted((one, other) => doubt(one) - doubt(other)) : table.rows);
  function place(row) {
    const next = ordered().at(ordered().indexOf(row) + 1);
    find("tbody").insertBefore(row.line, next?.line ?? null);
  }

  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  function csv() {
    const lines = [table.header, ...ordered().filter(({ done }) => done).map(({ cells }) => cells)];
    ask.download("answers.csv", "text/csv", lines.map((cells) => cells.map(quoted).join(",") + "\r\n").join(""));
  }

  const acts = {
    back: close,
    folder: () => openFiles(true),
    pictures: () => openFiles(false),
    begin,
    fields() {
      const settings = document.querySelector("#settings"), fold = document.querySelector("#fields-fold .label-wrap");
      if (!settings.classList.contains("open")) settings.querySelector(".toggle-button").click();
      if (!fold.classList.contains("open")) fold.click();
      setTimeout(() => document.querySelector("#fields [data-field=add]")?.focus(), 100);
    },
    go: () => (table.rows.some((row) => !row.done && !row.file) ? lacksFiles() : go()),
    stop() {
      stopping = true;
      document.querySelector("#stop-row").click();
    },
    sort(button) {
      sorted = !sorted;
      button.ariaPressed = sorted;
      draw();
    },
    csv,
    async new(button) {
      if (!ask.armed(button, "Really delete this one?")) return;
      await forget();
      kept.set("table", NONE);
      find("textarea").value = table.question;
      table = { rows: [] };
      draw();
      say("");
      find("textarea").focus();
    },
  };
  // The files of a table that came back must be chosen again where there was no room for them.
  function lacksFiles() {
    say(CHOOSE);
    openFiles(table.rows.some(({ name }) => name.includes("/")));
  }
  function open() {
    root.dataset.view = "table";
    kept.set("view", "table");
    const written = document.querySelector("#composer textarea")?.value.trim();
    if (written && !find("textarea").value) find("textarea").value = written;
    ask.table.showFields();
    restore();
    if (matchMedia("(pointer: fine)").matches) find(begun() ? "[data-table=go]" : "textarea").focus();
  }
  function close() {
    delete root.dataset.view;
    kept.set("view", null);
    document.querySelector("#sources [data-from=table]")?.focus();
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("#table [data-table]");
    if (button) acts[button.dataset.table](button);
  });
  ask.stands.then(() => {
    if (root.dataset.view && !find("section")) close(); // the server may have another model now
    else if (root.dataset.view) open();
  });

  ask.table = {
    open,
    close,
    choose,
    isOpen: () => root.dataset.view === "table",
    asked: () => given,
    hears(text, ended = false) {
      const said = JSON.parse(text || "{}"), isOwn = said.turn === turn;
      if (isOwn && isStage(said) && !ended) hearing(said);
      if (!ended || !heard) return;
      heard(isOwn && !isStage(said) ? said : { halt: LOST });
      heard = null;
    },
    showFields() {
      const names = (document.querySelector("#fields-text textarea")?.value ?? "").split("\n").filter(Boolean)
        .map((line) => line.split(":")[0]);
      find(".fields")?.replaceChildren(names.length ? "One column per field: " : "Answers are text.",
        made("b", { textContent: names.join(", "), translate: false }));
    },
  };
})();
