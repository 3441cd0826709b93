// The form: any field may stay empty, and what stays empty is shown as a distribution.

import { ask, latest, nats, say, settle, show } from "./service.js";

const MANY = 60; // values above which a list becomes a text field with suggestions
const BARS = 12;
const DRAWN = 200; // rows of the model that the gauge compares with
const AFFORDABLE = 2 ** 16; // values of such rows that the service draws for one request by default

export function start(model) {
  show("table-view");
  const at = (id) => document.getElementById(id);
  const fields = model.features.map((feature, i) => field(feature, i));
  at("row").append(...fields.map((f) => f.box));
  let drawn = null;

  const evidence = () => Object.fromEntries(fields.flatMap((f) => (f.value() === null ? [] : [[f.name, f.value()]])));

  const parts = new Chart(at("parts"), {
    type: "bar",
    data: { labels: [], datasets: [{ data: [], backgroundColor: "#e8770e" }] },
    options: {
      indexAxis: "y",
      animation: false,
      maintainAspectRatio: false,
      plugins: { legend: { display: false } },
      scales: { x: { title: { display: true, text: "surprise (nats)" } } },
    },
  });

  async function gauge(row) {
    const filled = Object.keys(row);
    if (!filled.length) {
      at("gauge").value = 0;
      at("rank").textContent = "Fill in a field.";
      parts.data.labels = parts.data.datasets[0].data = [];
      parts.update();
      return;
    }
    const affordable = Math.max(10, Math.floor(AFFORDABLE / fields.length));
    drawn ??= (await ask("sample", { n: Math.min(DRAWN, affordable, model.rows - 1), seed: 1 })).rows; // scored beside the row
    const others = drawn.map((r) => Object.fromEntries(filled.map((name) => [name, r[name]])));
    const { scores } = await ask("score", { rows: [row, ...others], n_orders: 2, terms: true });
    const own = -scores[0].mean_over_orders;
    const below = scores.slice(1).filter((s) => -s.mean_over_orders < own).length;
    const share = Math.round((100 * below) / drawn.length);
    at("gauge").value = share;
    at("rank").textContent = `${nats(own)} nats: more unusual than ${share} % of the rows that the model draws, in these fields.`;
    const ranked = Object.entries(scores[0].terms).sort((a, b) => b[1] - a[1]);
    parts.data.labels = ranked.map(([name]) => name);
    parts.data.datasets[0].data = ranked.map(([, x]) => x);
    parts.update();
    at("parts").setAttribute("aria-label", ranked.map(([name, x]) => `${name} ${nats(x)} nats`).join(", "));
  }

  const refresh = latest(async () => {
    const row = evidence();
    const { conditionals } = await ask("conditional", { row });
    for (const f of fields) f.show(conditionals[f.name] ?? null);
    await gauge(row);
    settle();
  });

  at("row").addEventListener("input", refresh);
  at("row").addEventListener("submit", (event) => event.preventDefault());
  at("clear").addEventListener("click", () => {
    for (const f of fields) f.set(null);
    refresh();
  });
  at("draw").addEventListener("click", async () => {
    try {
      const { rows } = await ask("sample", { n: 1, seed: Math.floor(Math.random() * 2 ** 31), given: evidence() });
      for (const f of fields) f.set(rows[0][f.name]);
      refresh();
    } catch (error) {
      say(error.message, true);
    }
  });
  refresh();
}

function field(feature, i) {
  const box = document.createElement("div");
  box.className = "field";
  const label = document.createElement("label");
  const title = document.createElement("span");
  title.textContent = feature.name;
  const input = control(feature, i);
  label.append(title, input);
  const said = document.createElement("p");
  said.className = "said";
  said.id = `said-${i}`;
  input.setAttribute("aria-describedby", said.id);
  const holder = document.createElement("div");
  holder.className = "chart";
  const canvas = document.createElement("canvas");
  canvas.setAttribute("aria-hidden", "true"); // the line above it says the same in words
  holder.append(canvas);
  box.append(label, said, holder);
  let chart = null;

  return {
    box,
    name: feature.name,
    value: () => (input.value.trim() === "" ? null : read(feature, input)),
    set: (value) => (input.value = value === null || value === undefined ? "" : write(feature, value)),
    show(distribution) {
      holder.hidden = distribution === null;
      said.textContent = distribution === null ? "" : words(distribution);
      chart?.destroy();
      chart = distribution === null ? null : new Chart(canvas, picture(distribution));
    },
  };
}

function control(feature, i) {
  if (feature.values === null || feature.values.length > MANY) {
    const input = document.createElement("input");
    input.placeholder = "unknown";
    if (feature.kind === "number") input.inputMode = "decimal";
    if (feature.kind === "moment") Object.assign(input, { type: "datetime-local", step: 1 });
    if (feature.values === null) return input;
    const list = document.createElement("datalist");
    list.id = `values-${i}`;
    list.append(...feature.values.map((v) => new Option(v, v)));
    document.body.append(list);
    input.setAttribute("list", list.id);
    return input;
  }
  const select = document.createElement("select");
  select.append(new Option("unknown", ""), ...feature.values.map((v, k) => new Option(String(v), String(k))));
  return select;
}

const listed = (feature) => feature.values !== null && feature.values.length <= MANY;

function read(feature, input) {
  if (listed(feature)) return feature.values[Number(input.value)];
  const own = feature.values?.find((v) => String(v) === input.value);
  if (own !== undefined) return own;
  const number = Number(input.value);
  return feature.kind === "label" || feature.kind === "moment" || !Number.isFinite(number) ? input.value : number;
}

function write(feature, value) {
  const text = String(value);
  const moment = feature.kind === "moment";
  if (!listed(feature)) return moment ? new Date(time(text)).toISOString().slice(0, 19) : text;
  const k = feature.values.findIndex((v) => String(v) === text || (moment && time(v) === time(text)));
  return k < 0 ? "" : String(k);
}

const short = (x) => (x === null ? "unknown" : typeof x === "string" ? x.slice(0, 10) : Number(Number(x).toPrecision(4)).toString());

function words(d) {
  if (d.kind !== "discrete") {
    const range = `about ${short(d.quantiles["0.5"])}, 90 % between ${short(d.quantiles["0.05"])} and ${short(d.quantiles["0.95"])}`;
    return d.probabilities ? `${range}; ${likeliest(d)}` : range;
  }
  return likeliest(d);
}

function likeliest(d) {
  return Object.entries(d.probabilities)
    .sort((a, b) => b[1] - a[1])
    .slice(0, 3)
    .map(([value, p]) => `${value}: ${(100 * p).toFixed(p < 0.1 ? 1 : 0)} %`)
    .join(", ");
}

function picture(d) {
  const plain = { animation: false, maintainAspectRatio: false, plugins: { legend: { display: false }, tooltip: { enabled: false } } };
  if (d.kind === "discrete") {
    const all = Object.entries(d.probabilities);
    const top = all.length > BARS ? all.sort((a, b) => b[1] - a[1]).slice(0, BARS) : all;
    return {
      type: "bar",
      data: { labels: top.map(([v]) => v), datasets: [{ data: top.map(([, p]) => p), backgroundColor: "#1f4e9c" }] },
      options: { ...plain, scales: { y: { min: 0, max: 1, ticks: { maxTicksLimit: 3 } } } },
    };
  }
  const line = { borderColor: "#1f4e9c", backgroundColor: "#1f4e9c33", pointRadius: 0 };
  const masses = Object.entries(d.probabilities ?? {}).map(([value, p]) => [d.kind === "moment" ? time(value) : Number(value), p]);
  const density = { ...line, data: curve(d.quantiles, masses[0]), fill: true, cubicInterpolationMode: "monotone" };
  const lines = masses.map(([x, y]) => ({ ...line, data: [{ x, y: 0 }, { x, y }], borderWidth: 4, yAxisID: "mass" }));
  const scales = {
    x: { type: "linear", ticks: { maxTicksLimit: 5, ...dated(d) } },
    y: { display: false, min: 0 },
    mass: { axis: "y", display: false, min: 0, max: 1 }, // a probability, not a density: as high as it is of the chart
  };
  return { type: "line", data: { datasets: [density, ...lines] }, options: { ...plain, scales } };
}

const dated = (d) => (d.kind === "moment" ? { callback: (x) => new Date(x).toISOString().slice(0, 10) } : {});

// Without a zone a moment is in UTC, and so is a date alone.
const time = (text) => Date.parse(text.length > 10 && !/(Z|[+-]\d\d:?\d\d)$/.test(text.slice(10)) ? `${text}Z` : text);

// The density between two quantiles is their difference in probability over their distance; a point mass is drawn beside it.
function curve(quantiles, [mass, p] = [NaN, 0]) {
  const all = Object.entries(quantiles).map(([q, x]) => [Number(q), typeof x === "string" ? time(x) : x]).sort((a, b) => a[0] - b[0]);
  const pairs = all.filter(([, x]) => x !== mass);
  if (all[0][1] === mass) pairs.unshift([p, mass]);
  if (all.at(-1)[1] === mass) pairs.push([1 - p, mass]);
  const points = [];
  for (let i = 1; i < pairs.length; i++) {
    const [[q0, x0], [q1, x1]] = [pairs[i - 1], pairs[i]];
    const between = x0 < mass && mass < x1 ? p : 0;
    if (x1 > x0) points.push({ x: (x0 + x1) / 2, y: Math.max(0, q1 - q0 - between) / (x1 - x0) });
  }
  return points.length ? [{ x: pairs[0][1], y: 0 }, ...points, { x: pairs.at(-1)[1], y: 0 }] : [];
}
