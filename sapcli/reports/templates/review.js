// The page on which a person decides about labels. It asks for nothing from a network: the images are in the page.
"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const { items, classes, neighbours } = page;
  const KINDS = { keep: "keep", take: "take", other: "other", out: "leave out" };
  const LEFT_OUT = "-1";
  const HUNDRED = 100;
  const find = (id) => document.getElementById(id);
  const list = find("list");
  const decisions = new Map(); // from an image's path to {kind, label}; the label is a position in classes, or null
  const history = []; // what undo goes back to: {index, before}
  const positionOfPath = new Map(items.map((item, index) => [item.path, index]));
  const classOfName = new Map(classes.map((name, index) => [name, index]));
  let shown = items.map((_, index) => index); // the images that the filters let through, in their order
  let current = 0; // a position in shown
  let cards = [];

  // --- Small helpers -------------------------------------------------------------------------------------------------

  function element(name, properties = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key.startsWith("aria-") || key === "role") made.setAttribute(key, value);
      else made[key] = value;
    }
    made.append(...children);
    return made;
  }

  function say(text) {
    find("status").textContent = text;
  }

  function percent(share) {
    return share > 0.995 ? ">99%" : share < 0.005 ? "<1%" : `${Math.round(100 * share)}%`;
  }

  function named(position) {
    return classes[position];
  }

  function imageAddress(path) {
    // Every part is encoded, so that no name can be an address of another kind.
    return page.folder === null ? null : page.folder + path.split("/").map(encodeURIComponent).join("/");
  }

  // --- Decisions, and where they are kept ----------------------------------------------------------------------------

  function remember() {
    const kept = {};
    for (const [path, { kind, label }] of decisions) kept[path] = [kind, label === null ? null : named(label)];
    try {
      localStorage.setItem(page.key, JSON.stringify(kept));
    } catch {
      find("storage").hidden = false;
    }
  }

  function recall() {
    try {
      const kept = JSON.parse(localStorage.getItem(page.key) ?? "{}");
      for (const [path, [kind, name]] of Object.entries(kept)) {
        if (positionOfPath.has(path)) take(path, kind, name);
      }
    } catch {
      find("storage").hidden = false;
    }
  }

  // A decision as a file or the browser has it; false where it makes no sense here.
  function take(path, kind, name) {
    if (kind === "out" && page.leaveOut) return Boolean(decisions.set(path, { kind, label: null }));
    const label = classOfName.get(name);
    if (label === undefined) return false;
    const item = items[positionOfPath.get(path)];
    const seen = label === item.given ? "keep" : label === item.choices[0] ? "take" : "other";
    return Boolean(decisions.set(path, { kind: seen, label }));
  }

  function decide(index, kind, label) {
    const { path } = items[index];
    history.push({ index, before: decisions.get(path) });
    decisions.set(path, { kind, label });
    remember();
    refresh(index);
    summarise();
    const next = shown.findIndex((other, position) => position > current && !decisions.has(items[other].path));
    say(`${path}: ${inWords(decisions.get(path))}. ${find("count").textContent}.`);
    focusOn(next < 0 ? Math.min(current + 1, shown.length - 1) : next);
  }

  function undo() {
    const last = history.pop();
    if (last === undefined) return say("There is nothing to undo.");
    const { path } = items[last.index];
    if (last.before === undefined) decisions.delete(path);
    else decisions.set(path, last.before);
    remember();
    refresh(last.index);
    summarise();
    const position = shown.indexOf(last.index);
    if (position >= 0) focusOn(position);
    say(`Undone: ${path}. ${find("count").textContent}.`);
  }

  function inWords(decision) {
    if (decision === undefined) return "not decided";
    if (decision.kind === "out") return "left out";
    return decision.kind === "keep" ? `kept as ${named(decision.label)}` : `changed to ${named(decision.label)}`;
  }

  const MARKS = { keep: "✓", take: "→", other: "→", out: "✕" };

  // --- Cards: empty places for all images, filled while they are near the screen --------------------------------------

  function fill(position) {
    const place = cards[position];
    const index = shown[position];
    if (place.firstElementChild?.tagName === "ARTICLE") return place.firstElementChild;
    const card = makeCard(index, position);
    place.replaceChildren(card);
    return card;
  }

  function empty(position) {
    const place = cards[position];
    if (place.contains(document.activeElement) || position === current) return;
    place.replaceChildren(items[shown[position]].path);
  }

  function makeCard(index, position) {
    const item = items[index];
    const picture = element("a", { className: "picture", target: "_blank", rel: "noopener", title: item.path });
    const address = imageAddress(item.path);
    if (address !== null) {
      picture.href = address;
      picture.setAttribute("aria-label", "Open the whole image in a new tab");
    }
    picture.append(item.image === null ? element("span", { className: "missing" }, "unreadable") : pictureOf(item));
    const model = item.contradicted ? "the model: " : "next likely: ";
    const card = element(
      "article",
      { tabIndex: -1 },
      picture,
      element(
        "p",
        { className: "labels" },
        element("span", { title: named(item.given) }, "labeled ", element("s", {}, named(item.given))),
        element("span", { title: named(item.choices[0]) }, model, element("b", {}, named(item.choices[0]))),
      ),
      element("p", { className: "chance" }, ...chanceOf(item)),
      reasons(item),
      controls(index),
      element("p", { className: "path", title: item.path }, item.path),
      element("p", { className: "state" }),
    );
    card.dataset.index = index;
    show(card, item, position);
    return card;
  }

  function pictureOf(item) {
    return element("img", { src: item.image, alt: "", decoding: "async", draggable: false });
  }

  function chanceOf(item) {
    const score = `loss ${item.score.toFixed(1)}`;
    if (item.chance === null) return [score];
    return [element("b", {}, percent(item.chance)), ` wrong, ${score}`];
  }

  // The nearest trusted images of the class that is given, and of that which the model sees.
  function reasons(item) {
    const rows = element("div", { className: "why" });
    const groups = [
      [item.given, item.near[0]],
      [item.choices[0], item.near[1]],
    ];
    for (const [position, found] of groups) {
      if (found.length === 0) continue;
      const pictures = found.map((number) => {
        const { path, image } = neighbours[number];
        return element("img", { src: image, alt: path, title: path, decoding: "async", draggable: false });
      });
      const heading = element("span", { title: `The nearest trusted images of ${named(position)}` }, named(position));
      rows.append(element("div", {}, heading, ...pictures));
    }
    if (item.same.length > 0) {
      const text = item.same.map(([path, label]) => `${path} (${named(label)})`).join(", ");
      rows.append(element("p", { className: "same", title: text }, `same picture: ${text}`));
    }
    return rows;
  }

  function controls(index) {
    const item = items[index];
    const box = element("div", { className: "choices" });
    const button = (key, text, action, label) =>
      box.append(
        element(
          "button",
          { type: "button", tabIndex: -1, onclick: action, title: label, "aria-label": label },
          element("kbd", { "aria-hidden": "true" }, key),
          element("span", {}, text),
        ),
      );
    button("k", "keep", () => decide(index, "keep", item.given), `Keep ${named(item.given)}`);
    button("1", named(item.choices[0]), () => choose(index, 0), `Take the suggestion, ${named(item.choices[0])}`);
    const select = element("select", { tabIndex: -1, "aria-label": "Choose another class" });
    select.append(element("option", { value: "" }, "other"));
    const likely = item.choices.slice(1);
    const rest = classes.map((_, position) => position).filter((each) => each !== item.given && !item.choices.includes(each));
    for (const [number, position] of [...likely, ...rest].entries()) {
      const key = number < likely.length ? `${number + 2} ` : "";
      select.append(element("option", { value: position }, key + named(position)));
    }
    select.onchange = () => select.value !== "" && decide(index, "other", Number(select.value));
    box.append(select);
    if (page.leaveOut) button("x", "leave out", () => decide(index, "out", null), "Leave the image out");
    return box;
  }

  function choose(index, number) {
    const label = items[index].choices[number];
    if (label !== undefined) decide(index, number === 0 ? "take" : "other", label);
  }

  function show(card, item, position) {
    const decision = decisions.get(item.path);
    card.classList.remove(...Object.keys(KINDS), "decided");
    if (decision !== undefined) card.classList.add(decision.kind, "decided");
    const words = inWords(decision);
    card.querySelector(".state").textContent = decision === undefined ? "" : `${MARKS[decision.kind]} ${words}`;
    const chance = item.chance === null ? "" : `, ${percent(item.chance)} likely wrong`;
    const model = item.contradicted ? "the model sees" : "next likely is";
    card.setAttribute(
      "aria-label",
      `${position + 1} of ${shown.length}: ${item.path}, labeled ${named(item.given)}, ${model} ` +
        `${named(item.choices[0])}${chance}, ${words}`,
    );
  }

  function refresh(index) {
    const position = shown.indexOf(index);
    const card = position < 0 ? null : cards[position].querySelector("article");
    if (card !== null) show(card, items[index], position);
  }

  const nearby = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const position = Number(entry.target.dataset.position);
        if (cards[position] !== entry.target) continue;
        if (entry.isIntersecting) fill(position);
        else empty(position);
      }
    },
    { rootMargin: "1000px 0px" },
  );

  // --- Filters and order ---------------------------------------------------------------------------------------------

  function pairOf(item) {
    return `${item.given}>${item.choices[0]}`;
  }

  function arrange() {
    const [of, pair, state, order] = ["class", "pair", "state", "order"].map((id) => find(id).value);
    const least = Number(find("least").value) || 0;
    const keepOpen = shown[current];
    shown = [];
    for (const [index, item] of items.entries()) {
      if (of !== "" && item.given !== Number(of) && item.choices[0] !== Number(of)) continue;
      if (pair !== "" && pairOf(item) !== pair) continue;
      if (item.score < least) continue;
      if (state !== "" && decisions.has(item.path) !== (state === "decided")) continue;
      shown.push(index);
    }
    if (order === "pair") {
      const sizes = new Map();
      for (const index of shown) sizes.set(pairOf(items[index]), (sizes.get(pairOf(items[index])) ?? 0) + 1);
      const rank = (index) => sizes.get(pairOf(items[index]));
      shown.sort((a, b) => rank(b) - rank(a) || (pairOf(items[a]) < pairOf(items[b]) ? -1 : pairOf(items[a]) > pairOf(items[b]) ? 1 : a - b));
    } else if (order === "chance") {
      shown.sort((a, b) => items[b].chance - items[a].chance || a - b);
    }
    lay();
    current = Math.max(0, shown.indexOf(keepOpen));
    mark();
    summarise();
  }

  function lay() {
    nearby.disconnect();
    const byPair = find("order").value === "pair";
    const places = document.createDocumentFragment();
    let before = null;
    const counts = new Map();
    for (const index of shown) counts.set(pairOf(items[index]), (counts.get(pairOf(items[index])) ?? 0) + 1);
    cards = shown.map((index, position) => {
      const item = items[index];
      if (byPair && pairOf(item) !== before) {
        before = pairOf(item);
        const text = `${named(item.given)} → ${named(item.choices[0])}: ${counts.get(before).toLocaleString("en")}`;
        places.append(element("li", { className: "pair" }, element("h2", {}, text)));
      }
      const place = element("li", { className: "card" }, item.path);
      place.dataset.position = position;
      places.append(place);
      return place;
    });
    list.replaceChildren(places);
    for (const place of cards) nearby.observe(place);
    find("none").hidden = shown.length > 0;
  }

  // --- Moving about --------------------------------------------------------------------------------------------------

  function mark() {
    for (const other of list.querySelectorAll('article[tabindex="0"]')) setReachable(other, false);
    if (shown.length > 0) setReachable(fill(current), true);
  }

  // One card at a time is reached by the Tab key, and its controls after it.
  function setReachable(card, reachable) {
    card.tabIndex = reachable ? 0 : -1;
    for (const control of card.querySelectorAll("a, button, select")) control.tabIndex = reachable ? 0 : -1;
  }

  function focusOn(position) {
    if (shown.length === 0) return;
    current = Math.max(0, Math.min(position, shown.length - 1));
    mark();
    const card = fill(current);
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  }

  // The card in the next row, up or down, that is nearest to the column.
  function inRow(step) {
    const place = cards[current];
    let best = null;
    let row = null;
    for (let position = current + step; position >= 0 && position < cards.length; position += step) {
      const other = cards[position];
      if (other.offsetTop === place.offsetTop) continue;
      row ??= other.offsetTop;
      if (other.offsetTop !== row) break;
      const distance = Math.abs(other.offsetLeft - place.offsetLeft);
      if (best === null || distance < best.distance) best = { position, distance };
    }
    return best === null ? current : best.position;
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || find("keys").open) return;
    const { target, key } = event;
    if (target.closest("input, select, textarea, summary")) return;
    const card = target.closest("article");
    if (card !== null && card !== cards[current]?.firstElementChild) current = shown.indexOf(Number(card.dataset.index));
    const index = shown[current];
    const actions = {
      ArrowRight: () => focusOn(current + (card === null ? 0 : 1)),
      ArrowLeft: () => focusOn(current - (card === null ? 0 : 1)),
      ArrowDown: () => focusOn(card === null ? current : inRow(1)),
      ArrowUp: () => focusOn(card === null ? current : inRow(-1)),
      Home: () => focusOn(0),
      End: () => focusOn(shown.length - 1),
      k: () => decide(index, "keep", items[index].given),
      t: () => choose(index, 0),
      x: () => page.leaveOut && decide(index, "out", null),
      o: () => cards[current].querySelector("a[href]")?.click(),
      u: undo,
      "?": () => find("keys").showModal(),
    };
    const pressed = key.length === 1 ? key.toLowerCase() : key;
    const action = /^[1-9]$/.test(key) ? () => choose(index, Number(key) - 1) : actions[pressed];
    const needsImage = !["u", "?"].includes(pressed);
    if (action === undefined || (needsImage && shown.length === 0)) return;
    event.preventDefault();
    action();
  });

  list.addEventListener("focusin", (event) => {
    const card = event.target.closest("article");
    if (card === null) return;
    const position = shown.indexOf(Number(card.dataset.index));
    if (position !== current) {
      current = position;
      mark();
    }
  });

  // --- How far it is, and how much there is left to find ---------------------------------------------------------------

  function summarise() {
    const decided = decisions.size;
    const counts = { keep: 0, take: 0, other: 0, out: 0 };
    for (const { kind } of decisions.values()) counts[kind] += 1;
    const of = `${decided.toLocaleString("en")} of ${items.length.toLocaleString("en")} decided`;
    find("count").textContent = of;
    find("progress").value = decided;
    find("progress").textContent = of;
    find("tally").textContent =
      `${counts.keep} kept, ${counts.take + counts.other} changed, ${counts.out} left out` +
      (shown.length < items.length ? `; ${shown.length.toLocaleString("en")} shown` : "");
    find("forecast").textContent = forecast();
  }

  // A logistic regression of the decisions on the log odds of the chances, with a normal prior around "the chances are
  // right" (see the page's module): Newton's method on its two numbers, halving steps that lead too far.
  function forecast() {
    const logit = (chance) => Math.max(-5, Math.min(5, Math.log(chance / (1 - chance))));
    const sigmoid = (value) => 1 / (1 + Math.exp(-value));
    const width = page.believed ? 1 : 2;
    const [spread, slopeSpread] = [width, width / 4];
    const seen = [];
    for (const [path, { kind }] of decisions) {
      const { chance } = items[positionOfPath.get(path)];
      if (chance !== null) seen.push([logit(chance), kind === "keep" ? 0 : 1]);
    }
    const next = shown.map((index) => items[index]).filter((item) => !decisions.has(item.path) && item.chance !== null);
    const upcoming = next.slice(0, HUNDRED).map((item) => logit(item.chance));
    if (upcoming.length === 0) return "";
    const surprise = (offset, slope) =>
      seen.reduce(
        (sum, [x, wrong]) => sum + Math.log1p(Math.exp(offset + slope * x)) - wrong * (offset + slope * x),
        0.5 * (offset / spread) ** 2 + 0.5 * ((slope - 1) / slopeSpread) ** 2,
      );
    let [offset, slope] = [0, 1];
    let [a, b, c] = [0, 0, 0];
    for (let step = 0; step < 100; step += 1) {
      let [first, second] = [-offset / spread ** 2, -(slope - 1) / slopeSpread ** 2];
      [a, b, c] = [1 / spread ** 2, 0, 1 / slopeSpread ** 2];
      for (const [x, wrong] of seen) {
        const expected = sigmoid(offset + slope * x);
        const weight = expected * (1 - expected);
        first += wrong - expected;
        second += (wrong - expected) * x;
        a += weight;
        b += weight * x;
        c += weight * x * x;
      }
      const determinant = a * c - b * b;
      let change = [(c * first - b * second) / determinant, (a * second - b * first) / determinant];
      const before = surprise(offset, slope);
      for (let half = 0; half < 40 && surprise(offset + change[0], slope + change[1]) > before; half += 1) {
        change = [change[0] / 2, change[1] / 2];
      }
      offset += change[0];
      slope += change[1];
      if (Math.abs(change[0]) + Math.abs(change[1]) < 1e-9) break;
    }
    let [mean, variance, byOffset, bySlope] = [0, 0, 0, 0];
    for (const x of upcoming) {
      const expected = sigmoid(offset + slope * x);
      const weight = expected * (1 - expected);
      mean += expected;
      variance += weight;
      byOffset += weight;
      bySlope += weight * x;
    }
    variance += (c * byOffset ** 2 - 2 * b * byOffset * bySlope + a * bySlope ** 2) / (a * c - b * b);
    const reach = 1.96 * Math.sqrt(variance);
    const low = Math.max(0, Math.floor(mean - reach));
    const high = Math.min(upcoming.length, Math.ceil(mean + reach));
    const what = upcoming.length < HUNDRED ? `the last ${upcoming.length}` : `the next ${HUNDRED}`;
    const source = `by the model${seen.length === 0 ? " alone" : ` and ${seen.length} decision${seen.length > 1 ? "s" : ""}`}`;
    return `Of ${what} about ${Math.round(mean)} are likely wrong (${low} to ${high}), ${source}.`;
  }

  // --- Files ---------------------------------------------------------------------------------------------------------

  function field(text) {
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  function exported() {
    const lines = ["path,label,decision"];
    for (const { path, given } of items) {
      const decision = decisions.get(path);
      if (decision === undefined) {
        // Where labels come from a file, this one takes its place and has to hold them all.
        if (page.others !== null) lines.push([field(path), field(named(given)), ""].join(","));
        continue;
      }
      const label = decision.label === null ? LEFT_OUT : named(decision.label);
      lines.push([field(path), field(label), KINDS[decision.kind]].join(","));
    }
    for (const [path, label] of page.others ?? []) {
      lines.push([field(path), field(label < 0 ? LEFT_OUT : named(label)), ""].join(","));
    }
    return `${lines.join("\n")}\n`;
  }

  find("export").onclick = () => {
    const address = URL.createObjectURL(new Blob([exported()], { type: "text/csv" }));
    element("a", { href: address, download: "decisions.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    say(`decisions.csv: ${find("count").textContent}. Give it to --labels.`);
  };

  // The records of a CSV file (RFC 4180), parted by commas, semicolons or tabs.
  function records(text) {
    const delimiter = [",", ";", "\t"].reduce((best, each) => {
      const count = (mark) => text.split("\n", 1)[0].split(mark).length;
      return count(each) > count(best) ? each : best;
    });
    const rows = [[]];
    let [value, quoted] = ["", false];
    for (let at = 0; at < text.length; at += 1) {
      const letter = text[at];
      if (quoted) {
        if (letter !== '"') value += letter;
        else if (text[at + 1] === '"') [value, at] = [`${value}"`, at + 1];
        else quoted = false;
      } else if (letter === '"' && value === "") quoted = true;
      else if (letter === delimiter) [value] = ["", rows.at(-1).push(value)];
      else if (letter === "\n") {
        rows.at(-1).push(value.replace(/\r$/, ""));
        rows.push([]);
        value = "";
      } else value += letter;
    }
    if (value !== "" || rows.at(-1).length > 0) rows.at(-1).push(value);
    return rows.filter((row) => row.length > 1);
  }

  find("import").onchange = async (event) => {
    const [file] = event.target.files;
    if (file === undefined) return;
    const [header = [], ...rows] = records((await file.text()).replace(/^\ufeff/, ""));
    const columns = header.map((name) => name.trim().toLowerCase());
    const [pathAt, labelAt, decisionAt] = ["path", "label", "decision"].map((name) => columns.indexOf(name));
    event.target.value = "";
    if (pathAt < 0 || labelAt < 0) return say(`${file.name} is no table with path,label.`);
    let [taken, refused] = [0, 0];
    for (const row of rows) {
      const index = positionOfPath.get(row[pathAt]);
      if (index === undefined) continue;
      const label = (row[labelAt] ?? "").trim();
      // Without a column of decisions, a label that is as it was may be one that nobody has looked at.
      if (decisionAt < 0 ? label === named(items[index].given) : (row[decisionAt] ?? "").trim() === "") continue;
      const before = decisions.get(items[index].path);
      const kind = label === LEFT_OUT && !classOfName.has(LEFT_OUT) ? "out" : "label";
      if (!take(items[index].path, kind, label)) refused += 1;
      else [taken] = [taken + 1, history.push({ index, before })];
    }
    remember();
    arrange();
    const wrong = refused > 0 ? `; ${refused} have a label that is no class here` : "";
    say(`${file.name}: ${taken} decisions read${wrong}. ${find("count").textContent}.`);
    find("imported").textContent = find("status").textContent;
  };

  // --- The beginning ---------------------------------------------------------------------------------------------------

  function options() {
    const [given, pairs] = [new Set(), new Map()];
    for (const item of items) {
      given.add(item.given).add(item.choices[0]);
      pairs.set(pairOf(item), (pairs.get(pairOf(item)) ?? 0) + 1);
    }
    for (const position of [...given].sort((a, b) => a - b)) {
      find("class").append(element("option", { value: position }, named(position)));
    }
    for (const [pair, count] of [...pairs].sort((a, b) => b[1] - a[1])) {
      const [from, to] = pair.split(">").map(Number);
      find("pair").append(element("option", { value: pair }, `${named(from)} → ${named(to)} (${count})`));
    }
    if (items.every((item) => item.chance === null)) find("order").querySelector("[value=chance]").remove();
  }

  for (const id of ["class", "pair", "state", "order", "least"]) find(id).onchange = arrange;
  find("undo").onclick = undo;
  find("help").onclick = () => find("keys").showModal();
  find("progress").max = Math.max(items.length, 1);
  find("filters").open = matchMedia("(min-width: 45rem)").matches;
  options();
  recall();
  arrange();
  const first = shown.findIndex((index) => !decisions.has(items[index].path));
  if (first > 0) {
    current = first;
    mark();
    cards[current].scrollIntoView({ block: "center" });
  }
})();
