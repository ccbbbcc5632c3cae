// What can be done with a model: one function per ability, which fills a panel.

import { ask, latest } from "/api.js";
import { copy, input } from "/input.js";

const SHOWN = 12; // most classes that keep their places; of more, the likeliest are shown
const THUMBNAILS = 24;

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function answered(panel, begun, milliseconds) {
  panel.dataset.answers = Number(panel.dataset.answers) + 1;
  const all = Math.round(performance.now() - begun);
  const model = milliseconds === undefined ? "" : `, ${Math.max(1, Math.round(milliseconds))} of them for the model`;
  panel.querySelector(".timing").textContent = `Answered in ${all} ms${model}.`;
}

// For screen readers: the answer, once nothing has changed for a moment.
function speaker(element) {
  let timer = 0;
  return (sentence) => {
    clearTimeout(timer);
    timer = setTimeout(() => (element.textContent = sentence), 700);
  };
}

function post(model, verb, blob, kind) {
  const path = `/api/models/${encodeURIComponent(model.name)}/${verb}?kind=${kind}`;
  const type = blob.type.startsWith("image/") ? blob.type : "application/octet-stream";
  return ask(path, { method: "POST", body: blob, headers: { "content-type": type } });
}

function show(image, source) {
  image.hidden = !source;
  if (source) image.src = source;
  else image.removeAttribute("src");
}

function classify(panel, model) {
  const digits = model.classes.every((label) => /^\d$/.test(label));
  let rows = [];
  let part = null;
  let say = null;

  input(panel, model, digits ? "a digit" : "something", async (blob, kind) => {
    if (blob === null) {
      empty();
      return;
    }
    const begun = performance.now();
    const answer = await (await post(model, "classify", blob, kind)).json();
    fill(answer);
    answered(panel, begun, answer.milliseconds);
  });
  panel.append(copy("classify"));
  part = (name) => panel.querySelector(`.output ${name}`);
  say = speaker(part(".spoken"));
  for (let i = 0; i < Math.min(model.classes.length, SHOWN); i++) rows.push(row(part(".bars")));
  empty();

  function empty() {
    part(".first .label").textContent = "?";
    part(".first .label").classList.remove("long");
    part(".first .share").textContent = "nothing to look at yet";
    part(".timing").textContent = "";
    show(part(".seen img"), null);
    rows.forEach((r, i) => r.set(model.classes[i], null, false));
  }

  function fill(answer) {
    part(".first .label").textContent = answer.label;
    part(".first .label").classList.toggle("long", answer.label.length > 3);
    part(".first .share").textContent = `${percent(answer.probability)} sure`;
    show(part(".seen img"), answer.seen);
    let shown = answer.classes;
    if (shown.length > SHOWN) shown = [...shown].sort((a, b) => b.probability - a.probability).slice(0, SHOWN);
    rows.forEach((r, i) => r.set(shown[i].label, shown[i].probability, shown[i].label === answer.label));
    say(`${answer.label}, ${percent(answer.probability)}`);
  }
}

function row(list) {
  const item = document.createElement("li");
  const [label, track, fill, value] = ["label", "track", "fill", "value"].map((name) => {
    const span = document.createElement("span");
    span.className = name;
    return span;
  });
  track.append(fill);
  item.append(label, track, value);
  list.append(item);
  return {
    set(name, share, best) {
      label.textContent = label.title = name;
      fill.style.transform = `scaleX(${share ?? 0})`;
      value.textContent = share === null ? "–" : percent(share);
      item.classList.toggle("best", best);
    },
  };
}

function reconstruct(panel, model) {
  let part = null;
  let say = null;

  input(panel, model, "a digit", async (blob, kind) => {
    if (blob === null) {
      for (const name of ["seen", "made", "difference"]) show(part(`img.${name}`), null);
      part(".error").textContent = "–";
      part(".timing").textContent = "";
      part(".code").replaceChildren();
      return;
    }
    const begun = performance.now();
    const answer = await (await post(model, "reconstruct", blob, kind)).json();
    show(part("img.seen"), answer.seen);
    show(part("img.made"), answer.reconstruction);
    show(part("img.difference"), answer.difference);
    part(".error").textContent = answer.error.toFixed(4);
    bars(part(".code"), answer.code);
    say(`Mean squared error ${answer.error.toFixed(4)}`);
    answered(panel, begun, answer.milliseconds);
  });
  panel.append(copy("reconstruct"));
  part = (name) => panel.querySelector(`.output ${name}`);
  say = speaker(part(".spoken"));
}

// A bar for each number, up or down from the middle; 3 standard deviations fill it.
function bars(box, values) {
  while (box.children.length < values.length) {
    const column = document.createElement("i");
    column.append(document.createElement("b"));
    box.append(column);
  }
  values.forEach((value, i) => {
    const share = Math.max(-1, Math.min(1, value / 3));
    box.children[i].firstChild.style.transform = `scaleY(${-share})`;
  });
}

function generate(panel, model) {
  panel.append(copy("generate"));
  const part = (name) => panel.querySelector(name);
  const [portrait, seed, grid, problem] = [part(".portrait img"), part(".seed input"), part(".grid"), part(".problem")];
  const sliders = Array.from({ length: model.sliders }, (_, i) => slider(part(".rows"), i, () => draw()));
  part(".portrait").classList.toggle("tiny", Math.max(...[model.image_size].flat()) < 32);
  const fail = (sentence) => (problem.textContent = sentence);
  const any = () => Math.floor(Math.random() * 1e6);

  const picture = async (number, moves) => {
    const query = new URLSearchParams([["seed", number], ...moves.map((m) => ["move", m])]);
    const path = `/api/models/${encodeURIComponent(model.name)}/generate?${query}`;
    return URL.createObjectURL(await (await ask(path)).blob());
  };
  const set = (image, url) => {
    const old = image.src;
    image.src = url;
    if (old) URL.revokeObjectURL(old);
  };
  const draw = latest(async () => {
    const begun = performance.now();
    const url = await picture(seed.value, sliders.map((s) => s.value));
    set(portrait, url);
    await portrait.decode().catch(() => null);
    portrait.alt = `The generated image of seed ${seed.value}`;
    part(".save").href = url;
    part(".save").download = `${model.name}-${seed.value}.png`;
    problem.textContent = "";
    for (const button of grid.children) button.setAttribute("aria-pressed", button.dataset.seed === seed.value);
    answered(panel, begun);
  }, fail);
  const fresh = latest(async () => {
    for (const button of grid.children) {
      const number = any();
      button.dataset.seed = number;
      button.title = `seed ${number}`;
      set(button.firstChild, await picture(number, []));
      button.firstChild.alt = `seed ${number}`;
      button.setAttribute("aria-pressed", seed.value === String(number));
    }
  }, fail);

  for (let i = 0; i < THUMBNAILS; i++) {
    const button = document.createElement("button");
    button.type = "button";
    const image = document.createElement("img");
    image.alt = button.title = `image ${i + 1}, not there yet`;
    button.append(image);
    button.addEventListener("click", () => choose(button.dataset.seed));
    grid.append(button);
  }
  function choose(number) {
    seed.value = number;
    sliders.forEach((s) => s.set(0));
    draw();
  }
  part(".fresh").addEventListener("click", () => choose(any()));
  part(".more").addEventListener("click", () => fresh());
  seed.addEventListener("change", () => draw());
  part(".reset").addEventListener("click", () => {
    sliders.forEach((s) => s.set(0));
    draw();
  });
  part(".shuffle").addEventListener("click", () => {
    sliders.forEach((s) => s.set(Math.round((Math.random() * 4 - 2) * 10) / 10));
    draw();
  });
  seed.value = 0;
  draw();
  fresh();
}

function slider(list, i, changed) {
  const label = document.createElement("label");
  const range = document.createElement("input");
  const value = document.createElement("output");
  range.type = "range";
  [range.min, range.max, range.step, range.value] = [-3, 3, 0.1, 0];
  const tell = () => (value.textContent = Number(range.value).toFixed(1));
  range.addEventListener("input", () => {
    tell();
    changed();
  });
  range.addEventListener("dblclick", () => {
    range.value = 0;
    tell();
    changed();
  });
  tell();
  label.append(`Direction ${i + 1}`, range, value);
  list.append(label);
  return {
    get value() {
      return range.value;
    },
    set(number) {
      range.value = number;
      tell();
    },
  };
}

export const panels = { classify, reconstruct, generate };
