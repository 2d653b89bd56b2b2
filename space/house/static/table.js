// The Chat tab's pickers, the portraits beside its messages, and a conversation saved as a scene.

import { choices, heat, ink, make, nice, portrait } from "./cast.js";
import { save } from "./share.js";

const KEY = "centralperkgpt-table";

/** A message's text, whichever way Gradio has it. */
const words = ({ content }) => (Array.isArray(content) ? content.map((part) => part.text ?? "").join(" ") : String(content ?? ""));

export function mount(element, { props }) {
  const facts = props.facts;
  const part = (selector) => element.querySelector(selector);
  const names = facts.cast.map((person) => person.name);
  const changed = () => {
    props.value = { me: me.get()[0], them: them.get()[0], place: place.value, temperature: warmth.get() };
    localStorage.setItem(KEY, JSON.stringify(props.value));
  };
  const me = choices(part("[data-list=me]"), { type: "radio", name: "me", cast: facts.cast, chosen: names[0], changed });
  const them = choices(part("[data-list=them]"), { type: "radio", name: "them", cast: facts.cast, anyone: "Anyone", chosen: "", changed });
  const warmth = heat(part("input[type=range]"), part("output"), changed);
  const place = part("select");
  place.append(...facts.places.map((value) => make("option", { value, textContent: nice(value) })));
  place.addEventListener("input", changed);

  const kept = JSON.parse(localStorage.getItem(KEY) ?? "{}");
  if (names.includes(kept.me)) me.set([kept.me]);
  if (names.includes(kept.them)) them.set([kept.them]);
  if (facts.places.includes(kept.place)) place.value = kept.place;
  if (kept.temperature) warmth.set(kept.temperature);
  changed();

  // Gradio draws the messages; who speaks is said at the start of each, and house.css shows the portrait of that name.
  const people = new Map(facts.cast.map((person) => [person.name, person]));
  const decorate = () => {
    for (const row of document.querySelectorAll("#talk .message-row")) {
      const speaker = /^\s*([A-Z][A-Z0-9 .'-]*):/.exec(row.textContent)?.[1];
      if (row.dataset.speaker === (speaker ?? "")) continue;
      row.dataset.speaker = speaker ?? "";
      row.style.setProperty("--face", people.has(speaker) ? `url("${new URL(portrait(speaker), document.baseURI)}")` : "none");
      ink(row, people.get(speaker));
    }
  };
  decorate();
  new MutationObserver(decorate).observe(document.body, { childList: true, subtree: true, characterData: true });

  window.house = {
    saveChat(messages, table) {
      const lines = messages.map(words).map((text) => text.replaceAll("\u2060", "").trim()).filter(Boolean);
      if (!lines.length) return;
      save(new Blob([`SCENE: ${table.place || facts.places[0]}\n\n${lines.join("\n")}\n`], { type: "text/plain" }), "conversation.txt");
    },
  };
}
