"use strict";

const SMALL = 128; // pixels of a side up to which images are enlarged without smoothing
const element = (id) => document.getElementById(id);

function make(name, text, attributes = {}) {
  const made = Object.assign(document.createElement(name), attributes);
  if (text !== undefined) made.textContent = text;
  return made;
}

function imageElement(source, alt) {
  const image = make("img", undefined, { alt });
  image.addEventListener("load", () => image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) <= SMALL));
  image.src = source;
  return image;
}

const describe = (role, column) => `${role}: ${column.prompt || "no prompt"}, seed ${column.seed}`;
const seconds = (value) => `${value < 10 ? value.toPrecision(2) : value.toFixed(0)} s`;
const calls = (number) => `${number} network call${number === 1 ? "" : "s"}`;

async function ask(prompts, seed, noises) {
  let response;
  try {
    response = await fetch("/draw", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ prompts, seed, noises }),
    });
  } catch {
    throw new Error("the server does not answer");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error || `the server answered ${response.status}`);
  return answer;
}

function showPair(answer) {
  const figures = answer.rows.map((row) => {
    const figure = make("figure");
    const caption = make("figcaption");
    caption.append(make("strong", row.role), make("span", `${calls(row.network_calls)}, ${seconds(row.seconds)} an image`, { className: "facts" }));
    figure.append(imageElement(row.images[0], describe(row.role, answer.columns[0])), caption);
    return figure;
  });
  element("pair").replaceChildren(...figures);
  element("pair").hidden = false;
}

function showStrip(id, answer, heading) {
  const table = make("table");
  for (const row of answer.rows) {
    const line = table.insertRow();
    line.append(make("th", row.role, { scope: "row" }));
    row.images.forEach((image, index) => line.insertCell().append(imageElement(image, describe(row.role, answer.columns[index]))));
  }
  const foot = table.insertRow();
  foot.append(make("td", undefined, { className: "corner" }));
  for (const column of answer.columns) foot.append(make("th", heading(column), { scope: "col" }));
  document.querySelector(`#${id} .strip`).replaceChildren(table);
  element(id).hidden = false;
}

async function draw() {
  const seed = element("seed").valueAsNumber;
  const count = element("count").valueAsNumber;
  const others = element("others").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const first = await ask([element("prompt").value.trim()], seed, count);
  showPair(first);
  if (count > 1) showStrip("noises", first, (column) => `seed ${column.seed}`);
  if (others.length) showStrip("prompts", await ask(others, seed, 1), (column) => column.prompt);
}

async function submit(event) {
  event.preventDefault();
  for (const id of ["error", "pair", "noises", "prompts"]) element(id).hidden = true;
  element("draw").disabled = true;
  const began = Date.now();
  const tell = () => { element("status").textContent = `Drawing, ${Math.round((Date.now() - began) / 1000)} s`; };
  const timer = setInterval(tell, 1000);
  tell();
  try {
    await draw();
  } catch (error) {
    element("error").textContent = error.message;
    element("error").hidden = false;
  } finally {
    clearInterval(timer);
    element("status").textContent = "";
    element("draw").disabled = false;
  }
}

element("form").addEventListener("submit", submit);
element("random").addEventListener("click", () => { element("seed").value = Math.floor(Math.random() * 2 ** 31); });
