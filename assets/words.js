// The page in the visitor's language. The sources speak English; words/<language>.json says each English sentence in
// another language, with {} for what changes in it, and {=} for what is quoted and never translated. What isn't in there
// stays English. Runs before anything is drawn.
(() => {
  const LANGUAGES = [];
  const language = navigator.languages
    .map((name) => name.slice(0, 2).toLowerCase())
    .find((name) => name === "en" || LANGUAGES.includes(name));
  if (!language || language === "en") return;

  const ATTRIBUTES = ["aria-label", "title", "placeholder", "alt"];
  // What models, visitors and programs wrote stays as it is, except where the page speaks among it.
  const THEIRS = `.message-content, .tokens, .alternatives :is(th, td), .compared p, textarea, pre, code, script, style,
    button.example, [data-conversation=open], [translate=no]`;
  const OURS = ":is(.stage, .failure, .remark, .figures, .advice, .beneath, .unshown, .placeholder-content, .note)";
  const isTheirs = (element) => element.closest(THEIRS) && !element.closest(OURS);

  const exact = new Map(), patterns = [], found = new Map();
  function said(text) {
    if (exact.has(text)) return exact.get(text);
    for (const { pattern, begin, translation, joins } of patterns) {
      if (!text.startsWith(begin)) continue;
      const parts = text.match(pattern)?.slice(1), places = translation.match(/\{=?\}/g);
      // “a · {} tokens” is a list, and not so many tokens.
      if (!parts || (!joins && parts.some((part, at) => places[at] === "{}" && part.includes(" · ")))) continue;
      return translation.replace(/\{=?\}/g, (place) => place === "{=}" ? parts.shift() : said(parts.shift()));
    }
    const list = text.split(" · ");
    return list.length > 1 ? list.map(said).join(" · ") : text;
  }
  function translated(text) {
    if (!/[a-z]/i.test(text)) return text;
    if (!found.has(text)) {
      if (found.size > 2000) found.clear();
      const [, before, words, after] = text.match(/^(\s*)(.*?)(\s*)$/s);
      found.set(text, before + said(words.replace(/\s+/g, " ")) + after);
    }
    return found.get(text);
  }
  function inText(node) {
    if (!node.parentElement || isTheirs(node.parentElement)) return;
    const text = translated(node.data);
    if (text !== node.data) node.data = text;
  }
  function inElement(element) {
    for (const name of ATTRIBUTES) {
      const value = element.getAttribute(name), text = value && translated(value);
      if (text !== value) element.setAttribute(name, text);
    }
  }
  function inside(root) {
    if (root.nodeType === Node.TEXT_NODE) return inText(root);
    if (root.nodeType !== Node.ELEMENT_NODE) return;
    const nodes = document.createTreeWalker(root, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT);
    for (let node = root; node; node = nodes.nextNode()) node.nodeType === Node.TEXT_NODE ? inText(node) : inElement(node);
  }

  const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  fetch(`words/${language}.json`).then((answer) => answer.json()).then((words) => {
    for (const [english, translation] of Object.entries(words)) {
      const parts = english.split(/\{=?\}/);
      if (parts.length === 1) exact.set(english, translation);
      else patterns.push({
        begin: parts[0], length: english.length, translation, joins: english.includes(" · "),
        pattern: new RegExp(`^${parts.map(escaped).join("(.+?)")}$`, "s"),
      });
    }
    patterns.sort((one, other) => other.length - one.length); // “The prompt: {} tokens” before “{} tokens”
    document.documentElement.lang = language;
    inside(document.documentElement);
    new MutationObserver((changes) => {
      for (const { type, target, addedNodes } of changes)
        if (type === "childList") addedNodes.forEach(inside);
        else type === "attributes" ? inElement(target) : inText(target);
    }).observe(document, {
      subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ATTRIBUTES,
    });
  }, (error) => console.error("The page stays English:", error));
})();
