// The stage: shows a scene as it is typed, under its speakers' portraits, and lets it be taken away.

import { ink, make, nice, portrait } from "./cast.js";
import { draw } from "./picture.js";
import { blocks } from "./screenplay.js";
import { copy, fileName, save, toLink } from "./share.js";
import { Typist } from "./typist.js";

export function mount(element, { props, watch }) {
  const facts = props.facts;
  const people = new Map(facts.cast.map((person) => [person.name, person]));
  const names = [...people.keys()];
  const part = (selector) => element.querySelector(selector);
  const [opening, queue, script, refusal, tools, after, skip, said] = [".opening", ".queue", ".script", ".refusal", ".tools", ".after", ".skip", ".said"].map(part);
  const [title, place, lines, announcer] = ["h2.title", "p.place", ".lines", ".announcer"].map(part);
  part(".sofa").append(...facts.cast.map((person) => make("img", { src: portrait(person.name), alt: "", width: 72, height: 72 })));

  let run = null; // { run, settings, text, seed, parts, shown, typist }
  let following = true;

  const show = (...elements) => [opening, queue, script, refusal].forEach((each) => (each.hidden = !elements.includes(each)));
  const state = (busy) => document.dispatchEvent(new CustomEvent("house:state", { detail: { busy, seed: run?.seed } }));

  document.addEventListener("house:run", ({ detail }) => {
    run?.typist.stop();
    const mine = (run = { ...detail, text: "", seed: "", parts: [], shown: [] });
    run.typist = new Typist((count) => mine === run && paint(count), () => mine === run && finished());
    [title, place, lines, announcer].forEach((each) => each.replaceChildren());
    [title, place].forEach((each) => (each.hidden = true));
    queue.textContent = "The coffee is on …";
    show(queue);
    tools.hidden = after.hidden = true;
    skip.hidden = true;
    said.textContent = "";
    following = true;
    state(true);
    if (element.getBoundingClientRect().top > innerHeight - 160) element.scrollIntoView({ behavior: "smooth", block: "start" });
  });

  document.addEventListener("house:stop", () => {
    if (!run) return;
    run.typist.stop();
    run.text = typedText();
    finished();
  });

  watch("value", () => {
    const now = props.value;
    if (!run || now.run !== run.run || run.over) return;
    if (now.state === "refused") {
      refusal.textContent = now.error;
      show(refusal);
      run.over = true;
      return state(false);
    }
    run.seed = now.seed;
    if (now.state === "waiting") {
      queue.textContent = now.place > 0 ? `The house is busy: you are number ${now.place} in the queue.` : "The coffee is on …";
      return show(queue);
    }
    run.text = now.text;
    run.parts = blocks(now.text, names, now.state === "done");
    if (now.state === "done") skip.hidden = run.typist.still;
    tools.hidden = false;
    show(script);
    run.typist.feed(run.parts.reduce((sum, each) => sum + each.text.length, 0), now.state === "done");
  });

  /** Puts the first `count` characters on the page: whole blocks, and the one that is being typed. */
  function paint(count) {
    let left = count;
    for (const [index, each] of run.parts.entries()) {
      const seen = Math.min(left, each.text.length);
      const shown = (run.shown[index] ??= place_(each));
      if (shown.count !== seen) {
        shown.words.textContent = each.text.slice(0, seen);
        shown.count = seen;
      }
      const whole = seen === each.text.length && each.closed;
      shown.box.classList.toggle("typing", !whole);
      if (whole && !shown.said) announce(shown, each);
      left -= seen;
      if (!whole) break; // the next speaker comes when this one has finished
    }
    follow();
  }

  /** A new block on the page, with nothing in it yet. */
  function place_(each) {
    if (each.kind === "title" || each.kind === "place") {
      const box = each.kind === "title" ? title : place;
      box.hidden = false;
      return { box, words: box, count: 0 };
    }
    if (each.kind === "direction") {
      const words = make("span");
      const box = make("p", { className: "direction" }, words);
      lines.append(box);
      return { box, words, count: 0 };
    }
    const words = make("span", { className: "words" });
    const name = make("span", { className: "name", textContent: nice(each.speaker) });
    const box = make("div", { className: "line" }, make("img", { src: portrait(each.speaker), alt: "", width: 56, height: 56 }), make("p", {}, name, words));
    box.dataset.speaker = each.speaker;
    ink(box, people.get(each.speaker));
    lines.append(box);
    return { box, words, count: 0 };
  }

  function announce(shown, each) {
    shown.said = true;
    announcer.append(make("p", { textContent: each.speaker ? `${nice(each.speaker)}: ${each.text}` : each.text }));
    while (announcer.childElementCount > 3) announcer.firstChild.remove();
  }

  function finished() {
    run.over = true;
    run.shown.forEach(({ box }) => box.classList.remove("typing"));
    const something = run.shown.length > 0;
    show(something ? script : opening);
    tools.hidden = after.hidden = !something;
    skip.hidden = true;
    part("[data-do=seed]").textContent = `seed ${run.seed}`;
    state(false);
    follow();
  }

  /** What can be read on the page, as the text of a scene. */
  function typedText() {
    let text = "";
    for (const [index, { count }] of run.shown.entries()) {
      const each = run.parts[index];
      const words = each.text.slice(0, count);
      if (each.kind === "title") text += `${words}\n\n`;
      else if (each.kind === "place") text += `SCENE: ${words}\n\n`;
      else if (words) text += each.kind === "line" ? `${each.speaker}: ${words}\n` : `(${words})\n`;
    }
    return text;
  }

  function follow() {
    if (!following || !run?.shown.length) return;
    const room = run.shown.at(-1).box.getBoundingClientRect().bottom - (innerHeight - 110);
    if (room > 0) scrollBy(0, room);
  }
  addEventListener("wheel", ({ deltaY }) => deltaY < 0 && (following = false), { passive: true });
  addEventListener("touchmove", () => (following = false), { passive: true });

  skip.addEventListener("click", () => run.typist.finish());

  const views = [...element.querySelectorAll("[data-view]")];
  const view = (wanted) => {
    script.classList.toggle("as-script", wanted === "script");
    views.forEach((each) => each.setAttribute("aria-pressed", each.dataset.view === wanted));
    localStorage.setItem("centralperkgpt-view", wanted);
  };
  views.forEach((each) => each.addEventListener("click", () => view(each.dataset.view)));
  view(localStorage.getItem("centralperkgpt-view") === "script" ? "script" : "bubbles");

  const actions = {
    copy: () => copy(run.text).then(() => "Copied."),
    link: () => copy(toLink({ ...run.settings, seed: run.seed }, facts.checkpoint.revision)).then(() => "Link copied: it opens this very scene."),
    text: async () => save(new Blob([run.text], { type: "text/plain" }), `${fileName(title.textContent)}.txt`),
    picture: async () => save(await draw(blocks(run.text, names, true), people), `${fileName(title.textContent)}.png`),
    seed: async () => document.dispatchEvent(new CustomEvent("house:seed", { detail: run.seed })),
  };
  for (const button of element.querySelectorAll("[data-do]")) {
    button.addEventListener("click", async () => {
      said.textContent = "";
      try {
        said.textContent = (await actions[button.dataset.do]()) ?? "";
      } catch (error) {
        said.textContent = `That did not work: ${error.message}.`;
      }
    });
  }

  element.querySelector(".stage").classList.add("ready");
  document.dispatchEvent(new Event("house:staged"));
}
