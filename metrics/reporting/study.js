"use strict";
// Nothing here knows which run a frame is of: frames and questions have drawn names, the key is elsewhere.
const content = JSON.parse(document.getElementById("content").textContent);
const place = `study ${content.study}`;
const endpoint = content.endpoint || (location.protocol.startsWith("http") ? "votes" : "");
const NAME = /^[a-z0-9][a-z0-9_-]{0,63}$/;
const PAUSE = 250; // ms: what a second tap of a double tap hits is no answer
const $ = (id) => document.getElementById(id);
let votes = null; // what is kept and sent: {study, rater, browser, answers: {question: frame or null}}
let order = []; // the questions as this rater sees them
let at = 0; // place in the order; its length at the end
let shownAt = 0;
let sending = false, waiting = false;
let carried = {}; // answers of a rater whose name was another's

function keep(name, value) {
  try { localStorage.setItem(name, JSON.stringify(value)); } catch { say("This browser keeps nothing: download your votes before you close the page.", true); }
}

function kept(name) {
  try { return JSON.parse(localStorage.getItem(name)); } catch { return null; }
}

function drawn() {
  return [...crypto.getRandomValues(new Uint8Array(8))].map((x) => x.toString(16).padStart(2, "0")).join("");
}

// Numbers from 0 to 1 that depend on a text alone: FNV-1a, then mulberry32.
function numbers(text) {
  let state = 2166136261;
  for (let i = 0; i < text.length; i++) state = Math.imul(state ^ text.charCodeAt(i), 16777619);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffled(list, text) {
  const found = [...list], next = numbers(text);
  for (let i = found.length - 1; i > 0; i--) {
    const other = Math.floor(next() * (i + 1));
    [found[i], found[other]] = [found[other], found[i]];
  }
  return found;
}

function say(text, failed = false) {
  $("state").textContent = text;
  $("state").className = failed ? "failed" : "";
}

function view(name) {
  for (const id of ["start", "ask", "end"]) $(id).hidden = id !== name;
  document.querySelector("footer").hidden = name === "start";
}

function begin(name) {
  const known = kept(`${place} ${name}`);
  votes = known && known.study === content.study && known.answers ? known : { study: content.study, rater: name, browser: drawn(), answers: carried };
  carried = {};
  keep(place, name);
  order = shuffled(content.items, name).map((item) => ({ ...item, frames: shuffled(item.frames, `${name} ${item.id}`) }));
  at = order.findIndex((item) => !(item.id in votes.answers));
  if (at < 0) at = order.length;
  $("who").textContent = `Voting as ${name}`;
  show();
  send();
}

function show() {
  const done = order.filter((item) => item.id in votes.answers).length;
  $("progress").max = order.length;
  $("progress").value = done;
  $("back").disabled = at === 0;
  if (at >= order.length) {
    $("sent").textContent = endpoint ? "All questions are answered." : "All questions are answered. Please download your votes and send the file to whoever asked you.";
    $("again").textContent = endpoint ? "Send the votes again" : "Download the votes";
    return view("end");
  }
  const item = order[at];
  $("place").textContent = `${at + 1} of ${order.length}`;
  $("action").textContent = item.action;
  $("source").src = item.source;
  $("choices").replaceChildren(...item.frames.map(([id, uri], number) => {
    const button = document.createElement("button"), image = document.createElement("img");
    const name = document.createElement("span"), key = document.createElement("kbd");
    button.type = "button";
    button.dataset.frame = id;
    image.src = uri;
    image.alt = `Picture ${number + 1}`;
    key.textContent = number + 1;
    name.append(key);
    button.append(image, name);
    button.onclick = () => choose(id);
    return button;
  }));
  const answer = votes.answers[item.id];
  for (const button of $("choices").children) button.classList.toggle("chosen", button.dataset.frame === answer);
  $("none").classList.toggle("chosen", answer === null);
  shownAt = performance.now();
  view("ask");
}

function choose(frame) {
  if (performance.now() - shownAt < PAUSE) return;
  votes.answers[order[at].id] = frame;
  keep(`${place} ${votes.rater}`, votes);
  at += 1;
  show();
  window.scrollTo(0, 0);
  send();
}

function back() {
  if (at > 0) { at -= 1; show(); }
}

// One after the other, each with all votes, so that the newest ones are the last to come.
async function send() {
  if (!endpoint) return;
  waiting = true;
  while (waiting && !sending) {
    sending = true;
    waiting = false;
    say("");
    let status = 0;
    try { status = (await fetch(endpoint, { method: "POST", body: JSON.stringify(votes) })).status; } catch { /* no connection */ }
    sending = false;
    if (status >= 200 && status < 300) say("Your votes have arrived.");
    else if (status === 409) {
      carried = votes.answers;
      refuse(`Somebody else votes as ${votes.rater}: please take another name.`);
    } else say("Your votes could not be sent; they are kept here. Download them if this stays.", true);
  }
}

function refuse(text) {
  keep(place, "");
  waiting = false;
  view("start");
  $("refused").textContent = text;
  $("refused").hidden = false;
  $("rater").focus();
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(votes, null, 1)], { type: "application/json" }));
  link.download = `votes-${votes.rater}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function start() {
  votes = null;
  $("refused").hidden = true;
  $("rater").value = `rater-${drawn().slice(0, 6)}`;
  view("start");
  $("rater").select();
}

$("begin").onsubmit = (event) => {
  event.preventDefault();
  const name = $("rater").value.trim().toLowerCase();
  if (NAME.test(name)) begin(name);
  else refuse("Please take a name of letters a to z, digits, - and _ only.");
};
$("none").onclick = () => choose(null);
$("back").onclick = back;
$("revise").onclick = () => { at = 0; show(); };
$("other").onclick = () => { keep(place, ""); start(); };
$("again").onclick = () => (endpoint ? send() : download());
$("download").onclick = (event) => { event.preventDefault(); download(); };
document.onkeydown = (event) => {
  if ($("ask").hidden || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const number = /^[0-9]$/.test(event.key) ? Number(event.key) : -1;
  if (number === 0) choose(null);
  else if (number > 0 && number <= order[at].frames.length) choose(order[at].frames[number - 1][0]);
  else if (event.key === "Backspace" || event.key === "ArrowLeft") back();
};

const asked = (new URLSearchParams(location.search).get("rater") || "").trim().toLowerCase();
const name = NAME.test(asked) ? asked : kept(place);
if (typeof name === "string" && NAME.test(name)) begin(name);
else start();
