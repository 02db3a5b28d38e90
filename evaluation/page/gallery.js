// The list, what it is filtered by, and the case that is open. The address keeps all of it.
const { tasks, cases } = JSON.parse(document.getElementById("data").textContent);
const cards = [...document.querySelectorAll(".card")];
const form = document.querySelector(".filter");
const viewer = document.querySelector(".viewer");
const inViewer = (selector) => viewer.querySelector(selector);
const STEP_MS = matchMedia("(prefers-reduced-motion: reduce)").matches ? 1500 : 700;
let shown = cases.map((_, number) => number);
let current = null;  // The number of the case that is open, or was last.

const nameOf = ({ task, name }) => `${task}:${name.match(/\d+$/)?.[0] ?? 1}`;
const numbers = new Map(cases.map((one, number) => [nameOf(one), number]));

// ---- the list ----

function addThumbs(number) {
  const { input, solution, answers } = cases[number];
  const thumbs = cards[number].querySelector(".thumbs");
  if (thumbs.childElementCount > 0) return;
  const firsts = answers.map(({ name, attempts }) => [name || "answer", attempts[0].grid]);
  const asked = answers.length > 1 ? [] : [["input", input]];
  const grids = [...asked, ...firsts, ["solution", solution]];
  thumbs.append(...grids.map(([label, grid]) => figure(
    label, grid, 72, { empty: label === "solution" ? "hidden" : "no answer" })));
}

const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) {
      addThumbs(cards.indexOf(target));
      watcher.unobserve(target);
    }
  }
}, { rootMargin: "600px" });

function filterCases() {
  const { q, outcome, ...kinds } = Object.fromEntries(new FormData(form));
  const sought = q.trim().toLowerCase();
  const isShown = (one) => one.task.toLowerCase().includes(sought)
    && (outcome === "" || one.outcome === outcome)
    && Object.entries(kinds).every(([key, name]) => name === "" || one.kinds[key] === name);
  shown = [...cases.keys()].filter((number) => isShown(cases[number]));
  const kept = new Set(shown);
  cards.forEach((card, number) => { card.hidden = !kept.has(number); });
  form.querySelector("output").textContent = `showing ${shown.length} of ${cases.length}`;
  document.querySelector(".nothing").hidden = shown.length > 0;
}

// ---- the address ----

function address() {
  const parts = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));
  if (viewer.open) parts.set("case", nameOf(cases[current]));
  return `#${parts}`;
}

function restore() {
  const parts = new URLSearchParams(location.hash.slice(1));
  for (const field of form.elements) {
    const value = parts.get(field.name) ?? "";
    if (field.type === "radio") field.checked = field.value === value;
    else if (field.name) field.value = value;
    if (field.tagName === "SELECT" && field.selectedIndex < 0) field.value = "";
  }
  if (!form.querySelector("input:checked")) form.elements.outcome[0].checked = true;
  filterCases();
  const number = numbers.get(parts.get("case"));
  if (number !== undefined) open(number);
  else if (viewer.open) viewer.close();
}

// ---- one case, opened ----

function badgeOf(isRight) {
  if (isRight === null) return null;
  const [look, text] = isRight ? ["right", "✓ right"] : ["wrong", "✗ wrong"];
  return element("span", { className: `badge ${look}`, textContent: text });
}

function attemptFigures({ attempts }, solution, box) {
  return attempts.map(({ grid, right, notes }, place) => figure(
    attempts.length > 1 ? `Attempt ${place + 1}` : "Answer", grid, box,
    { notes, badge: badgeOf(right), empty: "no answer",
      marks: right === false ? different(grid, solution) : null }));
}

// The side of a grid, so that as many stand in a row as have room.
function boxFor(most, counts) {
  const room = inViewer(".attempts").clientWidth, gap = 20;
  const sides = counts.map((count) => Math.floor((room - gap * (count - 1)) / count));
  return Math.min(most, sides.find((side) => side >= 140) ?? sides.at(-1));
}

function show(number) {
  current = number;
  player.stop();
  const one = cases[number], { input, solution, answers } = one;
  const box = boxFor(210, [4, 2]);
  const badge = cards[number].querySelector(".badge").cloneNode(true);
  inViewer("h2").replaceChildren(
    element("span", { className: "id", textContent: one.task }),
    element("span", { className: "name", textContent: one.name }), badge);
  const place = shown.indexOf(number);
  inViewer(".place").textContent = place < 0 ? "" : `${place + 1} of ${shown.length}`;
  inViewer(".previous").disabled = place <= 0;
  inViewer(".next").disabled = place < 0 || place === shown.length - 1;
  const pairs = tasks[one.task], smallBox = innerWidth > 640 ? 158 : 126;
  inViewer(".demonstrations").hidden = pairs.length === 0;
  inViewer(".body").classList.toggle("undemonstrated", pairs.length === 0);
  inViewer(".demonstrations .row").replaceChildren(...pairs.map(([from, to], i) => element(
    "div", { className: "pair" }, figure(`Input ${i + 1}`, from, smallBox),
    element("span", { className: "arrow", textContent: "→", ariaHidden: "true" }),
    figure(`Output ${i + 1}`, to, smallBox))));
  const asked = figure("Test input", input, box);
  const known = figure("Solution", solution, box, { empty: "hidden" });
  inViewer(".attempts .groups").replaceChildren(...(answers.length === 1
    ? [element("div", { className: "row" },
      asked, ...attemptFigures(answers[0], solution, box), known)]
    : [element("div", { className: "row alone" }, asked, known), ...answers.map((each) => element(
      "div", {}, element("h4", { textContent: each.name }),
      element("div", { className: "row" }, ...attemptFigures(each, solution, box))))]));
  const isMarked = answers.some(({ attempts }) => attempts.some(({ right }) => right === false));
  inViewer(".attempts .hint").hidden = !isMarked;
  player.load(one);
  for (const part of [".body", ".demonstrations", ".answered"]) inViewer(part).scrollTop = 0;
}

function open(number) {
  const wasOpen = viewer.open;
  if (!wasOpen) viewer.showModal();  // First: then it is known how much room there is.
  show(number);
  if (!wasOpen) inViewer("h2").focus();
}

// By way of the history, so that the back button of a phone closes what it has opened.
function openFromList(number) {
  open(number);
  history.pushState({ opened: true }, "", address());
}

function move(by) {
  const place = shown.indexOf(current) + by;
  if (viewer.open) {
    if (shown.indexOf(current) < 0 || shown[place] === undefined) return;
    show(shown[place]);
    history.replaceState(history.state, "", address());
  } else if (shown.length > 0) {
    const focused = cards.indexOf(document.activeElement.closest(".card"));
    const at = shown.indexOf(focused);
    const next = at < 0 ? 0 : Math.max(0, Math.min(shown.length - 1, at + by));
    cards[shown[next]].querySelector("a").focus({ preventScroll: true });
    cards[shown[next]].scrollIntoView({ block: "nearest" });
  }
}

viewer.addEventListener("close", () => {
  player.stop();
  cards[current].querySelector("a").focus({ preventScroll: true });
  cards[current].scrollIntoView({ block: "nearest" });
  if (!new URLSearchParams(location.hash.slice(1)).has("case")) return;
  if (history.state?.opened) history.back();
  else history.replaceState(null, "", address());
});

// ---- the refinement, step by step ----

const player = {
  steps: [], targets: [], solution: null, step: 0, timer: null,
  load({ steps, targets, solution }) {
    Object.assign(this, { steps, targets, solution });
    inViewer(".steps").hidden = steps.length === 0;
    if (steps.length === 0) return;
    inViewer("#step").max = steps.length;
    const nothing = () => element("span", { className: "empty", textContent: "no grid" });
    const thumb = (text, label) => element("span", { className: "thumb" },
      text === null ? nothing() : drawGrid(text, 52, label));
    const names = ["Step", "Answer", ...(targets.length > 0 ? ["Target"] : [])];
    inViewer(".strip").replaceChildren(
      element("div", { className: "labels", ariaHidden: "true" },
        ...names.map((name) => element("span", { textContent: name }))),
      ...steps.map(({ grid }, i) => element("button", { type: "button", onclick: () => this.go(i) },
        element("span", { textContent: `Step ${i + 1}` }), thumb(grid, "answer"),
        targets[i] ? thumb(targets[i], "target") : null)));
    this.go(steps.length - 1);
  },
  go(step) {
    this.step = step;
    const { grid, notes } = this.steps[step];
    const box = boxFor(260, [2]);
    const before = step > 0 ? this.steps[step - 1].grid : null;
    const target = this.targets[step];
    inViewer(".stage").replaceChildren(
      figure(`Answer after step ${step + 1}`, grid, box,
        { notes, marks: grid !== null && step > 0 ? different(grid, before) : null }),
      ...(target ? [figure(`Target of step ${step + 1}`, target, box,
        { marks: step > 0 ? different(target, this.targets[step - 1]) : null })] : []));
    inViewer("#step").value = step + 1;
    inViewer(".player output").textContent = `${step + 1} of ${this.steps.length}`;
    viewer.querySelectorAll(".strip button").forEach((button, i) => {
      if (i !== step) return button.removeAttribute("aria-current");
      button.setAttribute("aria-current", "step");
      const frame = button.closest(".scroll");  // Alone: the rest of the viewer stays where it is.
      frame.scrollLeft = button.offsetLeft - (frame.clientWidth - button.offsetWidth) / 2;
    });
  },
  say(sign, word) {
    inViewer(".play").firstElementChild.textContent = sign;
    inViewer(".play .word").textContent = word;
  },
  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.say("▶", "Play");
  },
  toggle() {
    if (this.steps.length === 0) return;
    if (this.timer !== null) return this.stop();
    this.go(this.step === this.steps.length - 1 ? 0 : this.step);
    this.say("❚❚", "Pause");
    this.timer = setInterval(() => {
      this.go(this.step + 1);
      if (this.step === this.steps.length - 1) this.stop();
    }, STEP_MS);
  },
};

// ---- what the reader does ----

const KEYS = {
  j: () => move(1), ArrowRight: () => move(1), k: () => move(-1), ArrowLeft: () => move(-1),
  p: () => viewer.open && player.toggle(),
  "/": () => {
    if (viewer.open) viewer.close();
    form.elements.q.focus();
    form.elements.q.select();
  },
};

document.addEventListener("keydown", (event) => {
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isTyped = target.matches("[type=search], select");
  if (key === "Escape" && isTyped) target.blur();
  if (isTyped || (target.matches("input") && key.startsWith("Arrow"))) return;
  // On a button or a link the space bar is theirs.
  const isSpace = key === " " && viewer.open && !target.matches("button, a, input, summary");
  const act = isSpace ? KEYS.p : KEYS[key];
  if (act === undefined) return;
  event.preventDefault();
  act();
});

form.addEventListener("input", () => {
  filterCases();
  history.replaceState(null, "", address());
});
form.addEventListener("submit", (event) => event.preventDefault());
document.querySelector(".reset").addEventListener("click", () => {
  history.replaceState(null, "", "#");
  restore();
});
document.querySelector(".cards").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (link === null || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  openFromList(cards.indexOf(link.closest(".card")));
});
inViewer(".previous").addEventListener("click", () => move(-1));
inViewer(".next").addEventListener("click", () => move(1));
inViewer(".close").addEventListener("click", () => viewer.close());
inViewer(".play").addEventListener("click", () => player.toggle());
inViewer("#step").addEventListener("input", (event) => {
  player.stop();
  player.go(Number(event.target.value) - 1);
});
viewer.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close();
});
addEventListener("popstate", restore);

for (const hidden of [form, document.querySelector(".keys")]) hidden.hidden = false;
restore();
for (const card of cards) watcher.observe(card);
