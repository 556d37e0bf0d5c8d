// Pictures on their way into the composer: documents whose pages are chosen, large photographs, the camera, addresses.
(() => {
  const find = (selector) => document.querySelector(selector);
  const ENDING = /[.](pdf|tiff?|gif|hei[cf]|jp2|j2k|mp4|m4v|3gp|mov|webm|mkv|avi)$/i;
  const KIND = /^(video\/|application\/pdf$|image\/(tiff|gif|hei[cf]|jp2))/;
  const ADDRESS = /(?:^|\s)(https?:\/\/\S+[.](?:jpe?g|png|webp|avif|gif|bmp|tiff?|heic)(?:[?]\S*)?)(?=\s|$)/i;
  const MAX_DOCUMENT = 90e6;
  const ready = new WeakSet(); // files that the composer may have as they are

  // The line above the composer, with a button if something is offered.
  let toldToWait = false;
  function say(text, offer, does) {
    toldToWait = false;
    let line = find("#said");
    if (!line) {
      line = Object.assign(document.createElement("p"), { id: "said" });
      line.setAttribute("role", "status");
      find("#picker").after(line);
    }
    line.textContent = text;
    if (!offer) return;
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: offer });
    button.addEventListener("click", does);
    line.append(" ", button);
  }

  // Files that are chosen, dropped or pasted reach Gradio only once they are pictures of a sensible size.
  const isPlain = (file) => ready.has(file) || !(ENDING.test(file.name) || KIND.test(file.type) || isLarge(file));
  const isLarge = (file) => file.size > 1e6 && /^image\/(jpeg|png|webp)$/.test(file.type);
  function intercept(event, data) {
    const files = [...(data?.files ?? [])];
    if (!files.length || files.every(isPlain)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.type === "change") event.target.value = ""; // so that the same file can be chosen again
    take(files);
  }
  document.addEventListener("change", (event) => {
    if (event.target.matches?.("#composer input[type=file]")) intercept(event, event.target);
  }, true);
  // Spreadsheets and word processors put a picture beside the text that they copy.
  const isText = (data) => Boolean(data?.getData("text/plain").trim()) && data.types.includes("text/html");
  // They may be dropped or pasted anywhere on the page, also while it is being drawn.
  function bring(event, data) {
    if (event.type === "paste" && isText(data)) return;
    if (event.target.closest?.("#composer")) return intercept(event, data);
    if (ask.embedded || !data?.files.length) return;
    event.preventDefault();
    if (ask.table.isOpen()) return void ask.table.choose([...data.files]);
    ask.attach([...data.files]).then(() => ask.toComposer());
  }
  document.addEventListener("dragover", (event) => {
    if (!ask.embedded && event.dataTransfer?.types.includes("Files")) event.preventDefault();
  });
  document.addEventListener("drop", (event) => bring(event, event.dataTransfer), true);
  document.addEventListener("paste", (event) => bring(event, event.clipboardData), true);

  async function take(files) {
    const isDocument = (file) => ENDING.test(file.name) || KIND.test(file.type);
    const pictures = files.filter((file) => !isDocument(file));
    waiting.push(...files.filter(isDocument));
    next();
    if (!pictures.length) return;
    making += 1;
    try {
      await ask.attach(await Promise.all(pictures.map((file) => smaller(file))));
    } finally {
      making -= 1;
    }
    if (toldToWait) say("");
  }
  // Whether a picture is on its way into the composer; then whoever sends is told to wait.
  let making = 0;
  ask.isMissingPictures = () => {
    const isRead = busy || ask.address || (waiting.length && !find("#picker .picker"));
    if (!making && !isRead && !find("#composer .loader")) return false;
    say("The picture is still on its way. Send again once it is here.");
    return (toldToWait = true);
  };
  ask.attach = async (files) => {
    await ask.stands;
    const input = find("#composer input[type=file]"), chosen = new DataTransfer();
    for (const file of files) chosen.items.add(file);
    input.files = chosen.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };

  // The size to which a picture can be made smaller unseen: as in pan_and_scan.py, where the tests measure it.
  const TILE = 896, DETAIL = 2, MIN_CROP = 256, MAX_CROPS = 4, MIN_RATIO = 1.2;
  function crops(width, height) {
    const longer = Math.max(width, height), shorter = Math.min(width, height);
    if (longer / shorter < MIN_RATIO) return 1;
    let count = Math.min(Math.floor(longer / MIN_CROP), Math.floor(longer / shorter + 0.5));
    count = Math.min(MAX_CROPS, Math.max(2, count));
    return Math.min(Math.ceil(longer / count), shorter) < MIN_CROP ? 1 : count;
  }
  ask.enoughPixels = (width, height) => {
    const count = crops(width, height), wide = width >= height;
    const columns = wide ? count : 1, rows = wide ? 1 : count;
    const scale = Math.max((DETAIL * TILE * columns) / width, (DETAIL * TILE * rows) / height);
    const smaller = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    return scale < 1 && crops(...smaller) === count ? smaller : [width, height];
  };
  ask.smaller = (file) => smaller(file, () => {});
  async function smaller(file, tell = say) {
    ready.add(file);
    if (!isLarge(file)) return file;
    const picture = await createImageBitmap(file).catch(() => null); // the server says what is wrong with it
    if (!picture) return file;
    const before = [picture.width, picture.height], after = ask.enoughPixels(...before);
    if (after[0] === before[0]) return file;
    const canvas = Object.assign(document.createElement("canvas"), { width: after[0], height: after[1] });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, 0, 0, ...after);
    picture.close();
    const blob = await new Promise((done) => canvas.toBlob(done, file.type, 0.95));
    if (!blob || blob.size >= file.size) return file;
    const less = new File([blob], file.name, { type: blob.type });
    ready.add(less);
    const size = (pixels) => pixels.map((side) => side.toLocaleString("en")).join(" × ");
    tell(`${file.name} is sent at ${size(after)} instead of ${size(before)} pixels: the model sees hardly any difference.`);
    return less;
  }

  // Documents go to the server one after the other; each waits until the one before has been chosen from.
  const waiting = [];
  let busy = false;
  async function next() {
    if (busy || !waiting.length || find("#picker .picker")) return;
    busy = true;
    const file = waiting.shift();
    await ask.stands;
    try {
      if (file.size > MAX_DOCUMENT) throw new Error(`“${file.name}” is larger than 90 MB. Add a shorter part of it.`);
      say(`Reading ${file.name} …`);
      ask.document = await ask.upload(file, file.name, "&document=1");
      find("#look-into").click();
    } catch (error) {
      const lost = `“${file.name}” did not reach the server. Add it again.`;
      say(error instanceof TypeError ? lost : error.message);
      busy = false;
      next();
    }
  }
  // The event itself failed, as where something before the server refuses it.
  ask.notArrived = () => {
    busy = false;
    refused = ask.address = null;
    say("The server did not answer. Try again.");
    setTimeout(next, 3000);
  };
  ask.arrive = (message, arrived, problem = "") => {
    busy = false;
    const files = JSON.parse(arrived || "[]").map((file) => ({ ...file, url: ask.fileAt(file.path) }));
    let text = message?.text ?? "";
    if (ask.address && files.length) text = text.replace(ask.address, "").trim();
    ask.address = null;
    if (problem || !find("#said button")) say(problem);
    setTimeout(next, 300);
    return { text, files: [...(message?.files ?? []), ...files] };
  };

  // The picker.
  const numbers = () => find("#picker .numbers");
  const isVideo = () => numbers()?.type === "number";
  ask.chosen = () => (numbers()?.value ?? "") + (isVideo() ? " frames" : "");
  function chosenPages() {
    const pages = new Set();
    for (const part of ask.chosen().replace(/\s*[-–]\s*/g, "-").split(/[,;\s]+/)) {
      const [first, last = first] = part.split("-").map(Number);
      for (let page = first; page <= last && pages.size < 1000; page++) pages.add(page);
    }
    return pages;
  }
  ask.showCost = showCost;
  function showCost() {
    const picker = find("#picker .picker");
    if (!picker) return;
    const costs = JSON.parse(picker.dataset.costs);
    const pages = isVideo() ? [] : [...chosenPages()].filter((page) => page >= 1);
    const count = isVideo() ? Number(numbers().value) : pages.length;
    const tokens = isVideo() ? count * costs[0] : pages.reduce((sum, page) => sum + (costs[page - 1] ?? 0), 0);
    for (const button of picker.querySelectorAll(".page"))
      button.setAttribute("aria-pressed", pages.includes(Number(button.dataset.page)));
    const what = `${count} ${count === 1 ? "picture" : "pictures"}`;
    const cost = costs.length ? `${what}, ${tokens.toLocaleString("en")} tokens` : what;
    const told = count > Number(picker.dataset.most) ? `${cost}; at most ${picker.dataset.most} at a time` : cost;
    const line = picker.querySelector(".cost");
    if (line.textContent !== told) line.textContent = told;
  }
  const ranges = (pages) => {
    const runs = [];
    for (const page of [...pages].sort((a, b) => a - b))
      runs.at(-1)?.[1] === page - 1 ? (runs.at(-1)[1] = page) : runs.push([page, page]);
    return runs.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(", ");
  };
  document.addEventListener("input", (event) => {
    if (event.target === numbers()) showCost();
    if (event.target.matches?.("#composer textarea")) offerAddress(event.target.value);
  });
  document.addEventListener("keydown", (event) => {
    if (event.target !== numbers() || event.key !== "Enter") return;
    find("#picker [data-pick=take]").click();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("#picker button, #sources button");
    if (button?.dataset.page) {
      const pages = chosenPages(), page = Number(button.dataset.page);
      pages.has(page) ? pages.delete(page) : pages.add(page);
      numbers().value = ranges(pages);
      showCost();
    } else if (button?.dataset.from === "camera") openCamera();
    else if (button?.dataset.from === "table") ask.table.open();
    else if (button?.dataset.pick === "take") {
      if (busy) return; // clicked twice
      busy = true;
      say("Taking the pictures …");
      find("#take-from").click();
    } else if (button) {
      find("#close-picker").click();
      setTimeout(next, 300);
    }
  });

  // A picture's address in the question: the server can fetch it.
  let refused = "";
  function offerAddress(text) {
    const found = text.match(ADDRESS)?.[1];
    if (!found) {
      if (find("#said button")) say("");
    } else if (found !== refused) {
      say(`This is a picture's address, at ${new URL(found).host}.`, "Add the picture", () => {
        refused = ask.address = found;
        say("Fetching the picture …");
        find("#fetch").click();
      });
    }
  }

  // Phones open their own camera; elsewhere a dialog shows what the camera sees.
  async function openCamera() {
    if (matchMedia("(pointer: coarse)").matches) {
      const input = Object.assign(document.createElement("input"), { type: "file", accept: "image/*" });
      input.setAttribute("capture", "environment");
      input.addEventListener("change", () => take([...input.files]));
      return input.click();
    }
    if (!navigator.mediaDevices)
      return say("Browsers give the camera only to pages with https. Take the photo elsewhere, and add it as a file.");
    const stream = await navigator.mediaDevices.getUserMedia({ video: { width: 1920, height: 1080 } }).catch((error) => {
      const why = {
        NotAllowedError: "The camera was refused. Allow it for this page beside the address, or add a photo as a file.",
        NotFoundError: "No camera was found. Connect one, or add a photo as a file.",
      };
      say(why[error.name] ?? "The camera can't be used now. Close other programs that use it, or add a photo as a file.");
    });
    if (!stream) return;
    const dialog = document.createElement("dialog");
    dialog.id = "camera";
    dialog.setAttribute("aria-label", "Camera");
    dialog.innerHTML = `<video autoplay playsinline muted></video><p class="row">
      <button type="button" class="primary" disabled>Take the photo</button><button type="button">Cancel</button></p>`;
    const video = dialog.querySelector("video"), [shoot, cancel] = dialog.querySelectorAll("button");
    // Before its first frame there is nothing to take.
    video.addEventListener("loadeddata", () => {
      shoot.disabled = false;
      shoot.focus();
    });
    video.srcObject = stream;
    cancel.addEventListener("click", () => dialog.close());
    shoot.addEventListener("click", async () => {
      const canvas = Object.assign(document.createElement("canvas"), {
        width: video.videoWidth, height: video.videoHeight,
      });
      canvas.getContext("2d").drawImage(video, 0, 0);
      const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
      dialog.close();
      if (blob) take([new File([blob], "camera.jpg", { type: "image/jpeg" })]);
    });
    dialog.addEventListener("close", () => {
      for (const track of stream.getTracks()) track.stop();
      dialog.remove();
      find("#sources [data-from=camera]")?.focus();
    });
    document.body.append(dialog);
    dialog.showModal();
  }
})();
