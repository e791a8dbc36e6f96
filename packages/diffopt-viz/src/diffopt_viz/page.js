"use strict";
// The picture: groups that are open or closed, rows by longest paths, and what the pointer does.
const column = ([values, places]) => places.map((k) => values[k]); // written once for many
const graph = JSON.parse(document.getElementById("graph").textContent);
graph.strokes = column(graph.strokes);
const columns = Object.entries(graph.nodes).map(([name, table]) => [name, column(table)]);
graph.nodes = columns[0][1].map((_, id) => Object.fromEntries([["id", id], ...columns.map(([name, all]) => [name, all[id]])]));
const picture = document.getElementById("picture");
const status = document.getElementById("status");
const SVG = "http://www.w3.org/2000/svg";
const FEWEST = 6; // like groups in a row that are folded
const MOST = 4000; // boxes that are drawn at once
const separator = "\u0000";
const open = new Set();
let view = { x: 0, y: 0, scale: 1 };
let drawn = null;

function element(name, attributes, parent, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text; // never parsed: names are harmless
  if (parent) parent.append(made);
  return made;
}

// Which box each node is drawn in: its outermost group that is not open, or itself.
function boxOf(node) {
  if (node.kind === "parameter" || node.kind === "output") return "node" + node.id;
  for (let depth = 1; depth <= node.group.length; depth++) {
    const path = node.group.slice(0, depth).join(separator);
    if (!open.has(path)) return "group" + path;
  }
  return "node" + node.id;
}

// Runs of like groups, each in the order of execution, are one box until they are opened.
function folds(boxes) {
  const first = new Map(), contents = new Map();
  graph.nodes.forEach((node, k) => {
    if (!boxes[k].startsWith("group") || node.order === null) return;
    first.set(boxes[k], Math.min(first.get(boxes[k]) ?? Infinity, node.order));
    if (!contents.has(boxes[k])) contents.set(boxes[k], new Map());
    const counts = contents.get(boxes[k]);
    counts.set(node.label, (counts.get(node.label) ?? 0) + 1);
  });
  const likeness = (box) => box.replace(/\d+/g, "#") + JSON.stringify([...contents.get(box)].sort());
  const order = [...first.keys()].sort((a, b) => first.get(a) - first.get(b));
  const folded = new Map(); // in the order of execution
  for (let start = 0, end; start < order.length; start = end) {
    for (end = start + 1; end < order.length; end++)
      if (likeness(order[end]) !== likeness(order[start])) break;
    const run = "run" + order[start + 1];
    if (end - start >= FEWEST && !open.has(run))
      for (let k = start + 1; k < end - 1; k++) folded.set(order[k], run);
  }
  return folded;
}

// The boxes and lines of the present state.
function collapse() {
  const boxes = graph.nodes.map(boxOf);
  const folded = folds(boxes);
  const place = new Map([...folded.keys()].map((box, k) => [box, k]));
  const members = new Map(), lines = new Map();
  boxes.forEach((box, k) => {
    const name = boxes[k] = folded.get(box) ?? box;
    if (!members.has(name)) members.set(name, { name, nodes: [], groups: new Set() });
    members.get(name).nodes.push(k);
    members.get(name).groups.add(box);
  });
  graph.edges.forEach(([a, b], k) => {
    const key = boxes[a] + "\u0001" + boxes[b];
    if (boxes[a] === boxes[b]) return;
    if (!lines.has(key)) lines.set(key, { from: members.get(boxes[a]), to: members.get(boxes[b]), edges: [] });
    lines.get(key).edges.push(k);
  });
  for (const box of members.values())
    box.groups = [...box.groups].sort((a, b) => place.get(a) - place.get(b));
  return { boxes: [...members.values()], lines: [...lines.values()] };
}

function texts(box) {
  if (box.name.startsWith("node")) return graph.nodes[box.nodes[0]].text.split("\n");
  const names = box.groups.map((name) => name.slice("group".length).split(separator).pop());
  const count = box.nodes.filter((k) => graph.nodes[k].kind === "operation").length;
  const plural = count > 1 ? "s" : "";
  if (names.length === 1) return ["▸ " + names[0], count + " operation" + plural];
  return ["▸ " + names[0] + " … " + names[names.length - 1], "× " + names.length + " like this"];
}

function layOut({ boxes, lines }) {
  for (const box of boxes) {
    box.lines = texts(box);
    box.width = 7.3 * Math.max(...box.lines.map((line) => line.length)) + 18;
    box.height = 15 * box.lines.length + 9;
    Object.assign(box, { row: 0, above: [], below: [], uses: 0 });
  }
  for (const { from, to } of lines) {
    from.below.push(to); to.above.push(from); from.uses++;
  }
  const ready = boxes.filter((box) => !box.uses);
  for (let k = 0; k < ready.length; k++)
    for (const box of ready[k].above) {
      box.row = Math.max(box.row, ready[k].row + 1);
      if (!--box.uses) ready.push(box);
    }
  const last = boxes.reduce((most, box) => Math.max(most, box.row), 0);
  const rows = Array.from({ length: last + 1 }, () => []);
  for (const box of [...boxes, ...leadAround(lines)]) rows[last - box.row].push(box);
  rows.forEach((row) => row.forEach((box, k) => { box.x = k * 120; }));
  for (let sweep = 0; sweep < 8; sweep++) {
    const down = sweep % 2 === 0;
    for (const row of down ? rows : [...rows].reverse()) place(row, down ? "above" : "below");
  }
  let y = 20;
  for (const row of rows) {
    const high = row.reduce((most, box) => Math.max(most, box.height), 0);
    for (const box of row) box.y = y + high / 2;
    y += high + 34;
  }
}

// Unseen boxes that keep the way of a long line free, if they are not too many.
function leadAround(lines) {
  const between = ({ from, to }) => from.row - to.row - 1;
  const affordable = lines.reduce((sum, line) => sum + between(line), 0) <= MOST;
  const unseen = [];
  for (const { from, to } of lines) { from.below = []; to.above = []; }
  for (const line of lines) {
    const count = affordable ? between(line) : 0;
    const way = Array.from({ length: count }, (_, k) => (
      { row: line.from.row - 1 - k, width: 0, height: 0, above: [], below: [] }
    ));
    unseen.push(...way);
    line.way = [line.from, ...way, line.to];
    for (let k = 0; k <= count; k++) {
      line.way[k].below.push(line.way[k + 1]);
      line.way[k + 1].above.push(line.way[k]);
    }
  }
  return unseen;
}

// From the lower edge of the first box to the upper edge of the last, upright through the others.
function trace(way) {
  let x = way[0].x, y = way[0].y + way[0].height / 2, d = `M${x} ${y}`;
  for (const box of way.slice(1)) {
    const end = box.y - box.height / 2, middle = (y + end) / 2;
    d += `C${x} ${middle} ${box.x} ${middle} ${box.x} ${end}`;
    [x, y] = [box.x, end];
  }
  return d + "m-3 -6l3 6l3 -6";
}

// A row in the order of its neighbours' means, as near to them as the widths allow.
function place(row, side) {
  const mean = (box) => box[side].length
    ? box[side].reduce((sum, other) => sum + other.x, 0) / box[side].length : box.x;
  const wishes = new Map(row.map((box) => [box, mean(box)]));
  row.sort((a, b) => wishes.get(a) - wishes.get(b));
  let edge = -Infinity, shift = 0;
  for (const box of row) {
    box.x = Math.max(wishes.get(box), edge + box.width / 2);
    shift += (box.x - wishes.get(box)) / row.length;
    edge = box.x + box.width / 2 + 18;
  }
  for (const box of row) box.x -= shift;
}

function worst(edges) { // the stroke that matters most: amiss first, then the widest
  const strokes = edges.map((k) => graph.strokes[k]);
  return strokes.reduce((a, b) => (b[2] > a[2] ? b : a));
}

function draw() {
  drawn = collapse();
  picture.replaceChildren();
  const world = element("g", { id: "world" }, picture);
  if (drawn.boxes.length > MOST) {
    status.textContent = `${drawn.boxes.length} boxes are too many to draw; close groups`;
    return;
  }
  layOut(drawn);
  for (const line of drawn.lines) {
    const [colour, dash, width, text] = worst(line.edges);
    const d = trace(line.way);
    const style = `stroke:${colour};stroke-width:${width};stroke-dasharray:${dash || "none"}`;
    line.shape = element("path", { d, style }, world);
    if (text) element("title", {}, line.shape, text);
  }
  for (const box of drawn.boxes) drawBox(box, world);
  status.textContent = `${drawn.boxes.length} boxes for ${graph.nodes.length} nodes`;
  mark();
  move();
}

function drawBox(box, world) {
  const single = box.name.startsWith("node");
  const kind = single ? graph.nodes[box.nodes[0]].kind : "group";
  box.shape = element("g", { "data-name": box.lines[0] }, world);
  box.shape.classList.add(kind);
  box.shape.classList.toggle("amiss", box.nodes.some((k) => k in graph.warnings));
  const bytes = box.nodes.reduce((sum, k) => sum + graph.nodes[k].saved_bytes, 0);
  const amiss = box.nodes.map((k) => graph.warnings[k]).filter(Boolean).slice(0, 3);
  const details = single ? [graph.nodes[box.nodes[0]].details]
    : [...box.lines, bytes ? bytes + " bytes saved for backward" : "", "click to open"];
  element("title", {}, box.shape, [...details, ...amiss].filter(Boolean).join("\n"));
  element("rect", {
    x: box.x - box.width / 2, y: box.y - box.height / 2, width: box.width, height: box.height,
    rx: 6, style: `fill:${graph.fill[kind]}`,
  }, box.shape);
  box.lines.forEach((line, k) => element("text", {
    x: box.x, y: box.y + 4 + 15 * (k - (box.lines.length - 1) / 2),
  }, box.shape, line));
  box.shape.addEventListener("click", () => toggle(box));
}

function toggle(box) {
  if (box.name.startsWith("run")) open.add(box.name);
  else if (box.name.startsWith("group")) open.add(box.name.slice("group".length));
  else { // an operation closes its innermost group
    const { group, kind } = graph.nodes[box.nodes[0]];
    if (kind === "parameter" || kind === "output" || !group.length) return;
    open.delete(group.join(separator));
  }
  draw();
}

// Search marks boxes; a chosen tensor dims all that is on none of its paths to the outputs.
function mark() {
  const wanted = document.getElementById("search").value.toLowerCase();
  for (const box of drawn.boxes) {
    const found = wanted && box.nodes.some((k) => graph.nodes[k].text.toLowerCase().includes(wanted));
    if (box.shape) box.shape.classList.toggle("found", Boolean(found));
  }
  const start = document.getElementById("ways").value;
  const on = start === "" ? null : onTheWay(Number(start));
  for (const box of drawn.boxes) box.shape?.classList.toggle("dim", on !== null && !box.nodes.some((k) => on.has(k)));
  for (const { shape, edges } of drawn.lines)
    shape?.classList.toggle("dim", on !== null && !edges.some((k) => graph.edges[k].every((n) => on.has(n))));
}

const after = graph.nodes.map(() => []);
for (const [a, b] of graph.edges) after[a].push(b);

function onTheWay(start) { // every operation after it leads to an output
  const seen = new Set([start]);
  for (const k of seen) for (const next of after[k]) seen.add(next);
  return seen;
}

function move() {
  document.getElementById("world")?.setAttribute(
    "transform", `translate(${view.x} ${view.y}) scale(${view.scale})`);
}

function fit() {
  const world = document.getElementById("world");
  if (!world) return;
  const box = world.getBBox(), { width, height } = picture.getBoundingClientRect();
  const scale = Math.min(1.5, (width - 20) / box.width, (height - 20) / box.height);
  view = { scale, x: width / 2 - scale * (box.x + box.width / 2), y: 10 - scale * box.y };
  move();
}

picture.addEventListener("wheel", (event) => {
  event.preventDefault();
  const factor = Math.exp(-event.deltaY / 500), { left, top } = picture.getBoundingClientRect();
  const x = event.clientX - left, y = event.clientY - top;
  view = { scale: view.scale * factor, x: x + (view.x - x) * factor, y: y + (view.y - y) * factor };
  move();
}, { passive: false });
picture.addEventListener("pointermove", (event) => {
  if (!event.buttons) return;
  view.x += event.movementX;
  view.y += event.movementY;
  move();
});
document.getElementById("search").addEventListener("input", mark);
document.getElementById("ways").addEventListener("change", mark);
document.getElementById("fit").addEventListener("click", fit);
document.getElementById("collapse").addEventListener("click", () => { open.clear(); draw(); fit(); });
document.getElementById("expand").addEventListener("click", () => {
  for (const { group } of graph.nodes)
    group.forEach((_, depth) => open.add(group.slice(0, depth + 1).join(separator)));
  draw();
  fit();
});
const ways = document.getElementById("ways");
ways.append(new Option("paths from …", ""));
graph.nodes.forEach((node, k) => {
  if (node.kind === "parameter" || node.kind === "tensor") ways.append(new Option(node.label, k));
});
draw();
fit();
