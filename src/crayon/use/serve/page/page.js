// Starts the page: which models there are, and a panel for the one that is chosen.

import { ask } from "/api.js";
import { panels } from "/panels.js";

const main = document.getElementById("main");
const tabs = document.getElementById("tabs");
const notice = document.getElementById("notice");
const facts = document.getElementById("facts");
const heading = document.getElementById("heading");
const made = new Map();

function show(models, name) {
  const model = models.find((m) => m.name === name) ?? models[0];
  if (!made.has(model.name)) {
    const panel = document.createElement("div");
    panel.className = "panel";
    panel.dataset.answers = "0";
    main.append(panel);
    made.set(model.name, panel);
    panels[model.ability](panel, model);
  }
  for (const [key, panel] of made) panel.hidden = key !== model.name;
  for (const button of tabs.children) {
    if (button.dataset.name === model.name) {
      button.setAttribute("aria-current", "page");
      button.scrollIntoView({ block: "nearest", inline: "center" });
    } else {
      button.removeAttribute("aria-current");
    }
  }
  const [height, width = height] = [model.image_size].flat();
  const size = `${height} × ${width} ${model.channels === 1 ? "grey" : "RGB"}`;
  facts.textContent =
    `${model.name} · ${model.job} · step ${model.step.toLocaleString("en")} · ` +
    `${model.parameters.toLocaleString("en")} parameters · images of ${size}`;
  heading.textContent = `${model.name} (${model.job})`;
  document.title = `${model.name} – Crayon`;
}

async function start() {
  const models = await (await ask("/api/models")).json();
  const chosen = () => decodeURIComponent(location.hash.slice(1));
  if (models.length > 1) {
    for (const model of models) {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.name = model.name;
      button.textContent = model.name;
      if (model.name !== model.job) {
        const job = document.createElement("small");
        job.textContent = model.job;
        button.append(job);
      }
      button.addEventListener("click", () => (location.hash = encodeURIComponent(model.name)));
      tabs.append(button);
    }
  }
  notice.remove();
  addEventListener("hashchange", () => show(models, chosen()));
  show(models, chosen());
}

start().catch((error) => (notice.textContent = error.message));
