// /openapi.json, to be read by people.

import { ask } from "/api.js";

const api = document.getElementById("api");

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (name) made.className = name;
  return made;
}

function table(rows) {
  const box = element("div", "", "scroll");
  const made = element("table");
  for (const cells of rows) {
    const line = element("tr");
    cells.forEach((cell, i) => line.append(element(i ? "td" : "th", cell)));
    made.append(line);
  }
  box.append(made);
  return box;
}

function type(schema = {}) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.anyOf) return schema.anyOf.map(type).join(" | ");
  if (schema.type === "array") return `list of ${type(schema.items)}`;
  return schema.type ?? "";
}

function curl(path, method, operation, model) {
  const filled = path.replace("{name}", model ? encodeURIComponent(model.name) : "NAME");
  if (operation.requestBody) {
    return `curl --data-binary @picture.png -H 'Content-Type: image/png' ${location.origin}${filled}`;
  }
  const query = filled.endsWith("generate") ? "?seed=7&move=1.5" : "";
  return `curl ${query ? "-o image.png " : ""}'${location.origin}${filled}${query}'`;
}

function operation(path, method, what, schemas, models) {
  const card = element("article", "", "card");
  const head = element("p", "", "path");
  head.append(element("span", method.toUpperCase(), "method"), path);
  card.append(element("h2", what.summary), head);
  const rows = (what.parameters ?? []).map((p) => [
    p.name,
    type(p.schema),
    [p.required ? "required" : "", p.description ?? p.schema.description].filter(Boolean).join("; "),
  ]);
  if (what.requestBody) rows.push(["body", Object.keys(what.requestBody.content)[0], what.requestBody.description]);
  if (rows.length) card.append(element("h3", "What to send"), table(rows));
  const content = Object.entries(what.responses["200"].content)[0];
  const schema = content[1].schema;
  const named = schema && (schema.$ref ?? schema.items?.$ref)?.split("/").pop();
  card.append(element("h3", "What comes back"));
  if (named) {
    if (schema.items) card.append(element("p", "A list of objects.", "faint"));
    const fields = Object.entries(schemas[named].properties);
    card.append(table(fields.map(([name, s]) => [name, type(s), s.description ?? ""])));
  } else {
    card.append(element("p", content[0], "faint"));
  }
  const ability = path.split("/").pop();
  const model = models.find((m) => m.ability === ability) ?? (path.includes("{name}") ? null : models[0]);
  card.append(element("pre", curl(path, method, what, model)));
  return card;
}

async function start() {
  const about = await (await ask("/openapi.json")).json();
  const models = await (await ask("/api/models")).json();
  const parts = [element("p", about.info.description, "faint")];
  for (const [path, methods] of Object.entries(about.paths)) {
    for (const [method, what] of Object.entries(methods)) {
      parts.push(operation(path, method, what, about.components.schemas, models));
    }
  }
  api.replaceChildren(...parts);
}

start().catch((error) => (api.firstElementChild.textContent = error.message));
