// Shows openapi.json: every route with its statuses, and every type with its fields, bounds and meanings.

import { apiKey, getJson, setApiKey } from "./api.js";

const place = (id) => document.getElementById(id);

// An element with these children, which are elements or text. Nothing is ever read as HTML.
function make(tag, children = [], attributes = {}) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function linkTo(reference) {
  const name = reference.split("/").pop();
  return make("a", [name], { href: `#type-${name}` });
}

// A schema in words, as a list of text and links.
function words(schema) {
  if (schema.$ref) return [linkTo(schema.$ref)];
  const options = schema.anyOf ?? schema.oneOf;
  if (options) return joined(options.map(words), " or ");
  if ("const" in schema) return [JSON.stringify(schema.const)];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(" or ")];
  const limits = bounds(schema);
  if (schema.type === "array") return ["list of ", ...(schema.items ? words(schema.items) : ["anything"]), limits];
  const inner = schema.additionalProperties;
  if (schema.type === "object" && typeof inner === "object") return ["map to ", ...words(inner), limits];
  return [`${schema.type ?? "anything"}`, limits];
}

function joined(lists, separator) {
  return lists.flatMap((list, index) => (index ? [separator, ...list] : list));
}

function bounds(schema) {
  const names = {
    minimum: "at least", exclusiveMinimum: "above", maximum: "at most", minItems: "at least", maxItems: "at most",
    minLength: "at least", maxLength: "at most",
  };
  const isLimit = (name) => name in schema && Math.abs(schema[name]) < 2 ** 53; // beyond it: what a machine can count
  const found = Object.keys(names).filter(isLimit).map((name) => `${names[name]} ${schema[name]}`);
  return found.length ? `, ${found.join(", ")}` : "";
}

// The description of a field may stand in one of its alternatives.
function meaning(schema) {
  return schema.description ?? (schema.anyOf ?? []).map(meaning).find((text) => text) ?? "";
}

function row(...cells) {
  return make("tr", cells.map((cell) => make("td", cell)));
}

function typeSection(name, schema) {
  const required = schema.required ?? [];
  const fields = Object.entries(schema.properties ?? {}).map(([field, one]) =>
    row([field, required.includes(field) ? " *" : ""], words(one), [meaning(one)]),
  );
  const body = fields.length ? make("table", fields) : make("p", words(schema));
  return make("section", [make("h3", [name]), make("p", [schema.description ?? ""]), body], { id: `type-${name}` });
}

function contents(content) {
  return joined(Object.entries(content ?? {}).map(([kind, one]) => [`${kind}: `, ...words(one.schema)]), "; ");
}

function operationSection(id, title, operation) {
  const body = operation.requestBody ? [make("h4", ["Body"]), make("p", contents(operation.requestBody.content))] : [];
  const answers = Object.entries(operation.responses).map(([status, one]) =>
    row([status], [one.description], contents(one.content)),
  );
  for (const answer of answers) answer.firstChild.className = "status";
  const parts = [make("h3", [title]), make("p", [operation.summary ?? ""]), ...body, make("h4", ["Answers"])];
  return make("section", [...parts, make("table", answers)], { id });
}

function show(whole) {
  place("version").textContent = whole.info.version;
  for (const [path, methods] of Object.entries(whole.paths))
    for (const [method, operation] of Object.entries(methods)) {
      const title = `${method.toUpperCase()} ${path}`;
      const id = `route-${method}${path}`;
      place("routes").append(make("a", [title], { href: `#${encodeURIComponent(id)}` }));
      place("operations").append(operationSection(id, title, operation));
    }
  const schemas = Object.entries(whole.components.schemas).sort(([a], [b]) => a.localeCompare(b));
  place("schemas").append(...schemas.map(([name, schema]) => typeSection(name, schema)));
  place("types").hidden = false;
}

async function load() {
  try {
    show(await getJson("openapi.json"));
    place("ask").hidden = place("trouble").hidden = true;
  } catch (error) {
    place("trouble").textContent = error.message;
    place("trouble").hidden = false;
    place("ask").hidden = error.status !== 401;
  }
}

place("key").value = apiKey();
place("key").addEventListener("change", () => {
  setApiKey(place("key").value.trim());
  load();
});
load();
