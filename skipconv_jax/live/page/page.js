// The live page: a card per camera, drawn from answers as they come. A token stands behind the #.
"use strict";
const token = location.hash.slice(1);
const headers = token ? { Authorization: `Bearer ${token}` } : {};
const cards = new Map();
const PICTURES = 400; // milliseconds between two pictures of a camera

function card(name) {
  if (cards.has(name)) return cards.get(name);
  const node = document.getElementById("card").content.firstElementChild.cloneNode(true);
  node.dataset.camera = name;
  node.querySelector(".name").textContent = name;
  document.getElementById("grid").append(node);
  const made = { node, costs: [], image: null, row: null, asked: 0, busy: false, seeded: false };
  cards.set(name, made);
  return made;
}

async function picture(name, c) {
  if (c.busy || Date.now() - c.asked < PICTURES) return;
  c.busy = true;
  c.asked = Date.now();
  try {
    const answer = await fetch(`api/cameras/${encodeURIComponent(name)}/frame.jpg`, { headers });
    if (answer.ok) {
      const before = c.image;
      c.image = await createImageBitmap(await answer.blob());
      if (before) before.close();
    }
  } finally {
    c.busy = false;
  }
}

function drawPicture(c) {
  const canvas = c.node.querySelector(".picture"), pen = canvas.getContext("2d"), row = c.row;
  if (!c.image || !row || !row.size) return;
  canvas.height = Math.round(canvas.width * c.image.height / c.image.width);
  pen.drawImage(c.image, 0, 0, canvas.width, canvas.height);
  if (row.fired && document.getElementById("blocks").checked) blocks(pen, canvas, row.fired);
  const across = canvas.width / row.size[0], down = canvas.height / row.size[1];
  pen.lineWidth = 2;
  pen.font = "14px system-ui, sans-serif";
  (row.boxes || []).forEach(([x1, y1, x2, y2], k) => {
    pen.strokeStyle = "#4285f4";
    pen.strokeRect(x1 * across, y1 * down, (x2 - x1) * across, (y2 - y1) * down);
    if (!row.labels) return;
    const zones = row.zones && row.zones[k].length ? ` in ${row.zones[k].join(", ")}` : "";
    const text = `${row.labels[k]} ${row.scores[k].toFixed(2)}${zones}`;
    const width = pen.measureText(text).width + 6, top = Math.max(y1 * down - 18, 0);
    pen.fillStyle = "#4285f4";
    pen.fillRect(x1 * across, top, width, 18);
    pen.fillStyle = "#fff";
    pen.fillText(text, x1 * across + 3, top + 14);
  });
}

function blocks(pen, canvas, fired) {
  const [rows, columns] = fired.size;
  const levels = Uint8Array.from(atob(fired.data), (letter) => letter.charCodeAt(0));
  const across = canvas.width / columns, down = canvas.height / rows;
  for (let k = 0; k < levels.length; k++) {
    if (!levels[k]) continue;
    pen.fillStyle = `rgba(255, 64, 64, ${(0.1 + 0.4 * levels[k] / 255).toFixed(3)})`;
    pen.fillRect((k % columns) * across, Math.floor(k / columns) * down, across, down);
  }
}

function drawCost(c) {
  const canvas = c.node.querySelector(".cost"), pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const step = canvas.width / 512, from = Math.max(c.costs.length - 512, 0);
  pen.fillStyle = "#4285f4";
  c.costs.slice(from).forEach((cost, k) => {
    const height = Math.max(Math.min(cost, 1) * canvas.height, 1);
    pen.fillRect(k * step, canvas.height - height, Math.max(step, 1), height);
  });
  c.costs.splice(0, from);
}

function describe(c, status) {
  const state = c.node.querySelector(".state");
  state.textContent = status.reason && status.state !== "live" && status.state !== "ended"
    ? `${status.state}: ${status.reason}` : status.state;
  state.className = `state ${status.state}`;
  const costs = status.costs, mean = costs.reduce((a, b) => a + b, 0) / (costs.length || 1);
  const late = status.latency.p95 === null ? "" : `, p95 ${(1000 * status.latency.p95).toFixed(0)} ms`;
  c.node.querySelector(".figures").textContent =
    `${status.fps.toFixed(1)} fps, ${(100 * mean).toFixed(1)}% of the dense cost${late}; ` +
    `${status.answered} answers, ${status.dropped} dropped, ${status.resets} resets, ` +
    `${status.reconnects} reconnects`;
  if (!c.seeded) {
    c.seeded = true;
    c.costs = [...costs]; // what was before the page
  }
}

async function statuses() {
  try {
    const answer = await fetch("api/cameras", { headers });
    if (!answer.ok) throw new Error(answer.status === 401 ? "a token is needed behind #" : answer.statusText);
    const all = await answer.json();
    let sum = 0, count = 0;
    for (const status of all) {
      const c = card(status.name);
      describe(c, status);
      drawCost(c);
      sum += status.costs.reduce((a, b) => a + b, 0);
      count += status.costs.length;
    }
    const live = all.filter((status) => status.state === "live").length;
    document.getElementById("total").textContent =
      `${live} of ${all.length} live, ${(100 * sum / (count || 1)).toFixed(1)}% of the dense cost`;
  } catch (error) {
    document.getElementById("connection").textContent = String(error.message || error);
  }
  setTimeout(statuses, 1000);
}

function listen(delay) {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const protocols = token ? ["skipconv", `token.${token}`] : ["skipconv"];
  const socket = new WebSocket(`${scheme}://${location.host}/api/answers`, protocols);
  const said = document.getElementById("connection");
  socket.onopen = () => { said.textContent = "connected"; delay = 500; };
  socket.onmessage = async (event) => {
    const row = JSON.parse(event.data), c = card(row.camera);
    c.row = row;
    c.costs.push(row.share);
    drawCost(c);
    await picture(row.camera, c);
    drawPicture(c);
  };
  socket.onclose = () => {
    said.textContent = "connection lost";
    setTimeout(() => listen(Math.min(2 * delay, 15000)), delay);
  };
}

statuses();
listen(500);
