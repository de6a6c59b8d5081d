// The settings of a chat. An empty field is left out of the request, so that the server's default holds.

import { apiKey, setApiKey } from "./api.js";

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const STORED = [...NUMBERS, "system", "thinking"];
const STORE = "splitrank-settings";
const field = (name) => document.getElementById(name);

export function systemMessage() {
  return field("system").value.trim();
}

// The fields of a request that the user has set.
export function requestFields() {
  const set = {};
  for (const name of NUMBERS) if (field(name).value !== "") set[name] = Number(field(name).value);
  if (field("thinking").value) set.chat_template_kwargs = { enable_thinking: field("thinking").value === "on" };
  return set;
}

// Opens the settings at the key, after the server has refused a request without it.
export function askForKey() {
  field("settings").open = true;
  field("key").focus();
}

// The server's defaults, shown in the empty fields.
export function showDefaults(defaults) {
  for (const name of NUMBERS) field(name).placeholder = name in defaults ? String(defaults[name]) : "";
}

function restore() {
  const stored = JSON.parse(localStorage.getItem(STORE) ?? "{}");
  for (const name of STORED) field(name).value = stored[name] ?? "";
  field("key").value = apiKey();
}

function store() {
  localStorage.setItem(STORE, JSON.stringify(Object.fromEntries(STORED.map((name) => [name, field(name).value]))));
}

restore();
for (const name of STORED) field(name).addEventListener("input", store);
field("key").addEventListener("change", () => setApiKey(field("key").value.trim()));
