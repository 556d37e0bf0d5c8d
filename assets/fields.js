// The form of an answer in fields. It is drawn from a text, "color: red, blue\nstars: number", which the settings keep.
(() => {
  const ask = (window.ask ??= {});
  const KINDS = { text: "Text", number: "Number", "yes/no": "Yes or no", choice: "Choice" };
  const MOST = 24;
  const find = (selector) => document.querySelector("#fields " + selector);
  const made = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  ask.made = made;

  function row(name = "", kind = "text", choices = "") {
    const options = Object.entries(KINDS).map(([value, text]) => made("option", { value, textContent: text }));
    const line = made("li", {},
      made("input", { className: "name", value: name, maxLength: 80, ariaLabel: "Name of the field", placeholder: "color" }),
      made("select", { ariaLabel: "Kind of the field" }, ...options),
      made("button", { type: "button", textContent: "×", ariaLabel: "Remove the field" }),
      made("input", { className: "choices", value: choices, ariaLabel: "Choices, with commas between",
                      placeholder: "red, blue, green" }));
    line.querySelector("button").dataset.field = "remove";
    line.querySelector("select").value = kind;
    adapt(line);
    return line;
  }
  const adapt = (line) =>
    line.querySelector(".choices").hidden = line.querySelector("select").value !== "choice";

  function rowOf(line) {
    const colon = line.indexOf(":"), name = colon < 0 ? line : line.slice(0, colon);
    const told = colon < 0 ? "text" : line.slice(colon + 1).trim();
    return told in KINDS ? row(name.trim(), told) : row(name.trim(), "choice", told);
  }

  ask.fields = {
    text() {
      const lines = [...document.querySelectorAll("#fields li")].map((line) => {
        const name = line.querySelector(".name").value.replace(/[:;\n]/g, " ").trim();
        const kind = line.querySelector("select").value;
        const told = kind === "choice" ? line.querySelector(".choices").value.replace(/[;\n]/g, ",") : kind;
        return name && `${name}: ${told.trim()}`;
      });
      return lines.filter(Boolean).join("\n");
    },
    // Draws the form again only where its text says something else, so that nobody loses what is being written. The fold
    // is made as it opens.
    async show(text) {
      ask.table?.showFields();
      for (let frame = 0; frame < 60 && !find("ul"); frame++) await new Promise(requestAnimationFrame);
      const list = find("ul");
      if (!list || (list.children.length && ask.fields.text() === (text ?? ""))) return;
      list.replaceChildren(...(text ?? "").split("\n").filter(Boolean).slice(0, MOST).map(rowOf));
    },
  };

  const changed = () => document.querySelector("#fields-changed").click();
  document.addEventListener("change", (event) => {
    const line = event.target.closest("#fields li");
    if (!line) return;
    adapt(line);
    changed();
  });
  document.addEventListener("click", (event) => {
    const act = event.target.closest("#fields [data-field]")?.dataset.field;
    if (!act) return;
    const list = find("ul");
    if (act === "add" && list.children.length < MOST) {
      list.append(row());
      list.lastChild.querySelector("input").focus();
    }
    if (act === "remove") {
      event.target.closest("li").remove();
      find("[data-field=add]").focus();
      changed();
    }
  });
})();
