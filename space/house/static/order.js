// The form: what is to be written. It sends the settings to the server and says so to the stage.

import { choices, heat, make, nice } from "./cast.js";
import { fromLink } from "./share.js";

/** The settings of the form as they are now; the Code tab may come later than they do. */
export const latest = { settings: { temperature: 0.8 } };

/** The stage may come later than the form: its own script says when it is there. */
const staged = () => new Promise((resolve) => (document.querySelector(".stage.ready") ? resolve() : document.addEventListener("house:staged", resolve, { once: true })));

export function mount(element, { props, trigger }) {
  const facts = props.facts;
  const form = element.querySelector("form");
  const part = (selector) => element.querySelector(selector);
  const [write, stop] = [part(".write"), part(".stop")];
  const changed = () => {
    const [lead] = who.get();
    company.disable((name) => name === lead);
    latest.settings = read();
    document.dispatchEvent(new Event("house:settings"));
  };

  const who = choices(part("[data-list=lead]"), { type: "radio", name: "lead", cast: facts.cast, anyone: "Anyone", chosen: "", changed });
  const company = choices(part("[data-list=company]"), { type: "checkbox", name: "company", cast: facts.cast, changed });
  const warmth = heat(part("#heat"), part("output"), changed);
  const [start, title, place, length, seed] = ["#form", "#title", "#place", "#length", "#seed"].map(part);

  const forms = facts.title_forms.length ? facts.title_forms : [""];
  start.append(...forms.map((value) => make("option", { value, textContent: value.charAt(0) + value.slice(1).toLowerCase() })));
  start.hidden = forms[0] === "";
  title.maxLength = Math.max(1, facts.longest_title - Math.max(...forms.map((value) => value.length)) - 1);
  place.append(...facts.places.map((value) => make("option", { value, textContent: nice(value) })));
  const { min, low, usual, high, max } = facts.lengths;
  if (min) {
    const ranges = [["short", min, low + 1], ["middling", usual - 1, usual + 1], ["long", high, max]];
    length.append(...ranges.map(([word, least, most]) => make("option", { value: `${least}-${most}`, textContent: `${word}: ${least} to ${most} lines` })));
  }
  for (const field of [start, title, place, length, seed]) field.addEventListener("input", changed);
  seed.addEventListener("input", () => (seed.value = seed.value.replace(/\D/g, "")));

  function read() {
    const settings = { temperature: warmth.get() };
    const [lead] = who.get();
    const others = company.get();
    if (lead) settings.character = lead;
    const words = title.value.trim().toUpperCase();
    if (words) settings.title = forms.some((value) => value && words.startsWith(value)) ? words : `${start.value} ${words}`.trim();
    if (place.value) settings.place = place.value;
    if (others.length) settings.cast = lead ? [lead, ...others] : others;
    if (length.value) settings.lines = length.value.split("-").map(Number);
    if (seed.value) settings.seed = seed.value;
    return settings;
  }

  function fill(settings) {
    who.set([settings.character ?? ""]);
    changed();
    company.set(settings.cast ?? []);
    warmth.set(settings.temperature ?? 0.8);
    const opening = forms.find((value) => value && settings.title?.startsWith(`${value} `)) ?? "";
    if (opening) start.value = opening;
    title.value = (settings.title ?? "").slice(opening.length).trim().toLowerCase();
    place.value = facts.places.includes(settings.place) ? settings.place : "";
    const range = settings.lines?.join("-") ?? "";
    if (range && ![...length.options].some((option) => option.value === range)) {
      length.append(make("option", { value: range, textContent: `${range.replace("-", " to ")} lines` }));
    }
    length.value = range;
    seed.value = settings.seed ?? "";
    part("details").open = Boolean(settings.title || settings.place || settings.cast || settings.lines);
    changed();
  }

  function send(settings) {
    const run = crypto.getRandomValues(new Uint32Array(4)).join("-");
    document.dispatchEvent(new CustomEvent("house:run", { detail: { run, settings } }));
    props.value = { ...settings, run };
    trigger("submit");
  }

  let written = false;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (written && seed.value === String(written)) seed.value = ""; // "another" is another: the seed of the last one has had its turn
    send(read());
  });
  stop.addEventListener("click", () => {
    document.dispatchEvent(new Event("house:stop"));
    trigger("stop");
  });
  document.addEventListener("house:state", ({ detail }) => {
    const had = element.contains(document.activeElement) && document.activeElement.matches(".write, .stop");
    write.hidden = detail.busy;
    stop.hidden = !detail.busy;
    if (had) (detail.busy ? stop : write).focus({ preventScroll: true });
    if (detail.seed && !detail.busy) written = detail.seed;
    if (written) write.textContent = "Write another";
  });
  document.addEventListener("house:seed", ({ detail }) => {
    seed.value = detail;
    written = false;
    part("details").open = true;
    changed();
    seed.focus();
  });

  const linked = fromLink();
  if (linked) {
    fill(linked);
    staged().then(() => send(linked)); // the link's own settings, even where the form has no field for them
  } else {
    changed();
  }
}
