// Requests to the service; a newer request of a kind makes older answers void.

const TOKEN = "deformer-token";
const status = document.getElementById("status");

export function say(text, bad = false) {
  status.textContent = text;
  status.classList.toggle("bad", bad);
}

async function login() {
  const form = document.getElementById("login");
  form.hidden = false;
  document.getElementById("token").focus();
  await new Promise((done) => form.addEventListener("submit", (event) => (event.preventDefault(), done()), { once: true }));
  const token = document.getElementById("token").value;
  if (!/^[ -~]*$/.test(token)) {
    // A header cannot hold it: every request would fail before the service could say that it is wrong.
    say("This is not the token.", true);
    return login();
  }
  sessionStorage.setItem(TOKEN, token);
  form.hidden = true;
}

export async function ask(path, body, method = body === undefined ? "GET" : "POST") {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) };
  const answer = await fetch(`v1/${path}`, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  if (answer.status === 401) {
    if (token) say("This is not the token.", true);
    await login();
    settle();
    return ask(path, body, method);
  }
  if (answer.status === 204) return null;
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error.message);
  return told;
}

// Runs only the latest of the calls that came while one was running.
export function latest(work) {
  let running = false;
  let waiting = null;
  return async function run(...args) {
    waiting = args;
    if (running) return;
    running = true;
    while (waiting) {
      const now = waiting;
      waiting = null;
      try {
        await work(...now);
      } catch (error) {
        if (!waiting) say(error.message, true);
      }
    }
    running = false;
  };
}

// What was wrong is right again; anything else that was said stays.
export const settle = () => status.classList.contains("bad") && say("");

export const show = (id) => document.getElementById("main").append(document.getElementById(id).content.cloneNode(true));
export const nats = (x) => x.toFixed(x < 10 ? 2 : 1);
