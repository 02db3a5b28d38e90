// Grids come as text, rows of digits between slashes, and are drawn when they are looked at.
const colours = JSON.parse(document.getElementById("colours").textContent);
const MAX_CELL = 26;

function element(name, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children.filter((child) => child !== null));
  return made;
}

// The cells of a grid that another does not have, or has in another colour: those at (row, column).
function different(text, other) {
  const rows = text.split("/"), others = other === null ? [] : other.split("/");
  return (row, column) => others[row]?.[column] !== rows[row][column];
}

function drawGrid(text, box, label, marks = null) {
  const rows = text.split("/"), height = rows.length, width = rows[0].length;
  const scale = Math.max(1, Math.round(window.devicePixelRatio));
  const room = Math.floor((box * scale - 1) / Math.max(width, height));
  const cell = Math.max(1, Math.min(MAX_CELL * scale, room));
  const canvas = element("canvas", { width: width * cell + 1, height: height * cell + 1 });
  canvas.style.width = `${canvas.width / scale}px`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${label}, ${height} rows by ${width} columns`);
  const pen = canvas.getContext("2d");
  const dot = Math.max(2, Math.round(cell / 3)), margin = Math.floor((cell + 1 - dot) / 2);
  const isMarked = rows.map((row, y) => [...row].map((_, x) => marks !== null && marks(y, x)));
  rows.forEach((row, y) => [...row].forEach((digit, x) => {
    if (digit !== ".") {
      pen.fillStyle = colours.cells[digit];
      pen.fillRect(x * cell, y * cell, cell, cell);
    }
  }));
  pen.fillStyle = colours.line;
  const [across, down] = cell >= 4 * scale ? [1, 1] : [width, height];  // Or only a frame.
  for (let x = 0; x <= width; x += across) pen.fillRect(x * cell, 0, 1, canvas.height);
  for (let y = 0; y <= height; y += down) pen.fillRect(0, y * cell, canvas.width, 1);
  rows.forEach((row, y) => [...row].forEach((digit, x) => {
    if (isMarked[y][x]) {
      pen.fillStyle = colours.dots[digit] ?? colours.line;
      pen.fillRect(x * cell + margin, y * cell + margin, dot, dot);
    }
  }));
  return canvas;
}

// A captioned grid; where there is none, words in its place.
function figure(label, text, box, options = {}) {
  const { marks = null, notes = [], badge = null, empty = "no grid" } = options;
  return element("figure", {},
    element("figcaption", {}, element("span", { textContent: label }), badge),
    text === null ? element("p", { className: "empty", textContent: empty })
      : drawGrid(text, box, label, marks),
    notes.length === 0 ? null : element("p", { className: "notes" },
      ...notes.map((note) => element("span", { textContent: note }))));
}
