// The live view: asks for /stats once a second, and draws rates, shares, and what each rank holds and does.

import { getJson } from "./api.js";
import { showDefaults } from "./settings.js";

const PERIOD_MS = 1000;
const WINDOW = 4; // reports of the engine, a second apart, over which rates are taken
const HISTORY = 60; // points of the curve
const show = (id, text) => (document.getElementById(id).textContent = text);
const percent = (share) => `${Math.round(100 * share)} %`;
const number = (value) => value.toLocaleString("en", { maximumFractionDigits: value < 100 ? 1 : 0 });

let reports = [];
let curve = [];
let timer = 0;

async function poll() {
  clearTimeout(timer);
  try {
    draw(await getJson("stats"));
    trouble("");
  } catch (error) {
    show("phase", "no contact");
    document.getElementById("phase").dataset.phase = "dead";
    trouble(error.status === 401 ? "The live view needs the API key: see the settings." : error.message);
    if (error.status === 401) return; // until there is another key
  }
  timer = setTimeout(poll, PERIOD_MS);
}

function trouble(text) {
  show("trouble", text);
  document.getElementById("trouble").hidden = !text;
  document.querySelector("aside").classList.toggle("stale", text !== ""); // what is shown is of before
}

function draw(stats) {
  show("phase", stats.death ? `${stats.phase}: ${stats.death}` : stats.phase);
  document.getElementById("phase").dataset.phase = stats.phase;
  if (!stats.model) return;
  show("model", `${stats.model}, ${number(stats.max_model_len)} tokens of context`);
  show("fingerprint", stats.fingerprint);
  showDefaults(stats.defaults);
  if (!stats.engine) return;
  remember(stats.engine);
  drawRates();
  drawGauges(stats.engine);
  drawStages(stats.reports, stats.engine);
}

// The engine reports about once a second; the same report may be seen twice, and counts once. After a restart of the
// server its counters begin again.
function remember(engine) {
  const last = reports.at(-1);
  if (last && engine.uptime_s < last.uptime_s) [reports, curve] = [[], []];
  if (reports.at(-1)?.uptime_s === engine.uptime_s) return;
  reports = [...reports, engine].slice(-WINDOW);
  if (reports.length > 1) curve = [...curve, rate("generated_tokens")].slice(-HISTORY);
}

// Change a second over the window.
function rate(name) {
  const [first, last] = [reports[0], reports.at(-1)];
  return (last[name] - first[name]) / (last.uptime_s - first.uptime_s);
}

function drawRates() {
  if (reports.length < 2) return;
  show("generated", number(rate("generated_tokens")));
  show("prompts", number(rate("prompt_tokens") + rate("cached_tokens")));
  show("steps", number(rate("steps")));
  const stages = reports.at(-1).num_stages;
  share("busy", rate("stage_busy_s") / stages);
  share("bubble", rate("bubble_s") / stages);
  const top = Math.max(...curve, 1);
  const points = curve.map((value, at) => `${120 - 2 * (curve.length - 1 - at)},${29 - (27 * value) / top}`);
  document.querySelector("#history polyline").setAttribute("points", points.join(" "));
}

function share(id, value, text = percent(value)) {
  show(id, text);
  document.getElementById(`${id}-share`).value = value;
}

function drawGauges(engine) {
  show("running", engine.num_running);
  show("queue", engine.num_waiting);
  show("swapped", engine.num_preempted);
  for (const name of ["pages", "slots"]) {
    const [total, free] = [engine[`num_${name}`], engine[`free_${name}`]];
    share(name, (total - free) / total, `${number(total - free)} of ${number(total)}`);
  }
  const asked = engine.prompt_tokens + engine.cached_tokens;
  share("hits", asked ? engine.cached_tokens / asked : 0);
}

// One box a stage, in it one a rank. Ranks are numbered stage by stage.
function drawStages(lines, engine) {
  const ranksPerStage = engine.ranks.length / engine.num_stages;
  const stages = [];
  engine.ranks.forEach((rank, index) => {
    const stage = Math.floor(index / ranksPerStage);
    stages[stage] ??= make("section", `Stage ${stage}`);
    const [name, ...holds] = lines[index] ?? [`rank ${index}`];
    const box = make("div", name);
    const list = document.createElement("ul");
    const finished = rank.last_step < 0 ? "no step yet" : `finished ${rank.last_step}`;
    const now = [`in ${rank.phase}, ${finished}`, `heartbeat ${rank.heartbeat_age_s.toFixed(1)} s ago`];
    list.append(...[...holds, ...now].map((text) => Object.assign(document.createElement("li"), { textContent: text })));
    box.append(list);
    stages[stage].append(box);
  });
  document.getElementById("stages").replaceChildren(...stages);
}

function make(tag, title) {
  const box = document.createElement(tag);
  box.append(Object.assign(document.createElement("h3"), { textContent: title }));
  return box;
}

addEventListener("keychange", poll);
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : poll()));
poll();
