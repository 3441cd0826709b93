// The canvas: known pixels are painted, and the probability of every unknown one is shown live.

import { ask, latest, nats, say, settle, show } from "./service.js";

const ON = [31, 78, 156];
const OFF = [255, 255, 255];
const FRAME = 8; // pixels between two looks at all probabilities while a row is drawn

export function start(model) {
  show("image-view");
  const [height, width] = model.image_shape;
  const names = model.features.map((f) => f.name);
  const at = (id) => document.getElementById(id);
  const canvas = at("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.style.aspectRatio = `${width} / ${height}`;
  let known = new Array(names.length).fill(null);
  let probability = new Array(names.length).fill(null);
  let surprise = {};
  let cursor = Math.floor(height / 2) * width + Math.floor(width / 2);
  let drawing = 0; // raising it ends the drawing under way
  let playing = false;

  const evidence = () => Object.fromEntries(names.flatMap((n, i) => (known[i] === null ? [] : [[n, known[i]]])));

  function colour(i) {
    if (at("surprise").checked && known[i] !== null) {
      const heat = Math.min(1, (surprise[names[i]] ?? 0) / 3);
      const base = known[i] ? ON : OFF;
      return base.map((c, k) => Math.round(c + heat * ([214, 20, 20][k] - c)));
    }
    if (known[i] !== null) return known[i] ? ON : OFF;
    const p = probability[i] ?? 0;
    return [226 + 6 * p, 226 - 107 * p, 226 - 212 * p].map(Math.round);
  }

  function paint() {
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    names.forEach((_, i) => image.data.set([...colour(i), 255], 4 * i));
    context.putImageData(image, 0, 0);
    if (document.activeElement === canvas) {
      context.strokeStyle = "#e8770e";
      context.lineWidth = 0.4;
      context.strokeRect((cursor % width) + 0.2, Math.floor(cursor / width) + 0.2, 0.6, 0.6);
    }
    const rest = known.flatMap((v, i) => (v === null ? [probability[i] ?? 0] : []));
    at("known").textContent = String(known.length - rest.length);
    at("expected").textContent = rest.reduce((a, b) => a + b, 0).toFixed(1);
  }

  function take(conditionals) {
    names.forEach((n, i) => {
      if (conditionals[n]) probability[i] = conditionals[n].probabilities["1"] ?? 0;
    });
  }

  const refresh = latest(async () => {
    const row = evidence();
    const [{ conditionals }, { scores }] = await Promise.all([
      ask("conditional", { row, n_orders: 1 }),
      ask("score", { rows: [row], n_orders: 2, terms: true }),
    ]);
    take(conditionals);
    surprise = scores[0].terms;
    at("nll").textContent = nats(Math.max(0, -scores[0].mean_over_orders));
    paint();
    settle();
  });

  function set(i, value, size = 1) {
    const row = Math.floor(i / width);
    const column = i % width;
    for (let r = row; r < Math.min(height, row + size); r++)
      for (let c = column; c < Math.min(width, column + size); c++) known[r * width + c] = value;
    paint();
    refresh();
  }

  const tool = () => {
    const value = document.querySelector("input[name=tool]:checked").value;
    return value === "" ? null : Number(value);
  };

  function pixel(event) {
    const box = canvas.getBoundingClientRect();
    const c = Math.floor(((event.clientX - box.left) / box.width) * width);
    const r = Math.floor(((event.clientY - box.top) / box.height) * height);
    return c >= 0 && c < width && r >= 0 && r < height ? r * width + c : null;
  }

  function stroke(event) {
    const i = pixel(event);
    if (i === null || playing) return;
    cursor = i;
    set(i, tool(), Number(at("size").value) || 1);
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    stroke(event);
  });
  canvas.addEventListener("pointermove", (event) => event.buttons && stroke(event));
  canvas.addEventListener("focus", paint);
  canvas.addEventListener("blur", paint);
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // the browser's own
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -width, ArrowDown: width };
    const values = { 1: 1, 0: 0, " ": tool(), Backspace: null, Delete: null };
    if (event.key in moves) {
      const next = cursor + moves[event.key];
      const sameRow = Math.floor(next / width) === Math.floor(cursor / width);
      if (next >= 0 && next < names.length && (Math.abs(moves[event.key]) > 1 || sameRow)) cursor = next;
      paint();
    } else if (event.key in values && !playing) {
      set(cursor, values[event.key]);
    } else return;
    event.preventDefault();
    const value = known[cursor];
    const state = value === null ? `unknown, on with probability ${(probability[cursor] ?? 0).toFixed(2)}` : value ? "on" : "off";
    say(`row ${Math.floor(cursor / width) + 1}, column ${(cursor % width) + 1}: ${state}`);
  });

  function miniature(row) {
    const small = document.createElement("canvas");
    small.width = width;
    small.height = height;
    const context = small.getContext("2d");
    const image = context.createImageData(width, height);
    names.forEach((n, i) => image.data.set([...(row[n] ? ON : OFF), 255], 4 * i));
    context.putImageData(image, 0, 0);
    small.setAttribute("role", "img");
    return small;
  }

  at("fill").addEventListener("click", async () => {
    at("fill").disabled = true;
    say("Filling in ...");
    try {
      const seed = Math.floor(Math.random() * 2 ** 31);
      const { imputations } = await ask("impute", { rows: [evidence()], n_imputations: 6, seed });
      const { scores } = await ask("score", { rows: imputations.map((rows) => rows[0]), n_orders: 1 });
      at("fills").replaceChildren(
        ...imputations.map((rows, i) => {
          const small = miniature(rows[0]);
          const text = `${nats(-scores[i].mean_over_orders)} nats`;
          small.setAttribute("aria-label", `Filled in, ${text}`);
          const figure = document.createElement("div");
          const caption = document.createElement("small");
          caption.textContent = text;
          figure.append(small, caption);
          return figure;
        }),
      );
      say("");
    } catch (error) {
      say(error.message, true);
    } finally {
      at("fill").disabled = false;
    }
  });

  at("clear").addEventListener("click", () => {
    drawing++;
    known.fill(null);
    paint();
    refresh();
  });
  at("surprise").addEventListener("change", paint);

  const chart = new Chart(at("running"), {
    type: "line",
    data: { datasets: [{ data: [], borderColor: "#1f4e9c", pointRadius: 0, borderWidth: 2 }] },
    options: {
      animation: false,
      maintainAspectRatio: false,
      plugins: { legend: { display: false } },
      scales: {
        x: { type: "linear", min: 0, max: names.length, title: { display: true, text: "pixels seen" } },
        y: { min: 0, title: { display: true, text: "−ln p so far (nats)" } },
      },
    },
  });

  // One row as a session: each pixel is drawn from its conditional, observed, and the running score drawn.
  at("play").addEventListener("click", async () => {
    const mine = ++drawing;
    if (playing) return;
    playing = true;
    at("play").textContent = "Stop";
    if (!known.includes(null)) known.fill(null); // the image is whole: begin another
    const order = names.map((_, i) => i).filter((i) => known[i] === null);
    for (let i = order.length - 1; i > 0; i--) {
      const j = Math.floor(Math.random() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    chart.data.datasets[0].data = [];
    let session = null;
    let failed = null;
    try {
      ({ session } = await ask("sessions", {}));
      let seen = 0;
      let told = null;
      for (const i of names.map((_, k) => k).filter((k) => known[k] !== null)) {
        if (drawing !== mine) break;
        told = await ask(`sessions/${session}/observe`, { name: names[i], value: known[i] });
        chart.data.datasets[0].data.push({ x: ++seen, y: told.running_nats });
      }
      while (order.length && drawing === mine) {
        const group = order.slice(0, FRAME).map((i) => names[i]);
        take((await ask(`sessions/${session}/predict`, { names: seen % (8 * FRAME) ? group : null })).conditionals);
        for (const i of order.splice(0, FRAME)) {
          const { conditionals } = await ask(`sessions/${session}/predict`, { names: [names[i]] });
          if (drawing !== mine) break;
          take(conditionals);
          known[i] = Math.random() < probability[i] ? 1 : 0;
          told = await ask(`sessions/${session}/observe`, { name: names[i], value: known[i] });
          chart.data.datasets[0].data.push({ x: ++seen, y: told.running_nats });
        }
        if (drawing !== mine) break;
        at("nll").textContent = nats(told.running_nats);
        at("running").setAttribute("aria-label", `${nats(told.running_nats)} nats after ${seen} pixels`);
        chart.update();
        paint();
      }
    } catch (error) {
      failed = error.message;
    } finally {
      playing = false;
      at("play").textContent = "Draw in a random order";
      if (session) ask(`sessions/${session}`, undefined, "DELETE").catch(() => {});
      await refresh();
      if (failed) say(failed, true);
    }
  });

  paint();
  refresh();
}
