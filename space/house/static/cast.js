// The cast: portraits, colours, and groups of portraits to choose from. Names come from the checkpoint; none is known here.

export const portrait = (name) => `house/portraits/${encodeURIComponent(name.toLowerCase())}.svg`;
export const nice = (name) => name.toLowerCase().replace(/(^|[ .'-])([a-z])/g, (_, before, letter) => before + letter.toUpperCase());

export function ink(element, person) {
  element.style.setProperty("--day", person?.day ?? "#6d5643");
  element.style.setProperty("--night", person?.night ?? "#c3ad95");
}

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Portraits to choose one of (`radio`) or several of (`checkbox`); `anyone` is what a first choice of nobody is called. */
export function choices(list, { type, name, cast, anyone, chosen, changed }) {
  const people = anyone ? [{ name: "" }, ...cast] : cast;
  for (const person of people) {
    const input = make("input", { type, name, value: person.name, checked: person.name === chosen, className: "sr-only" });
    const face = person.name
      ? make("img", { src: portrait(person.name), alt: "", width: 96, height: 96, draggable: false })
      : make("span", { className: "anyone", textContent: "?", ariaHidden: "true" });
    const label = make("label", {}, input, make("span", { className: "face" }, face), make("span", { className: "called" }, person.name ? nice(person.name) : anyone));
    ink(label, person);
    input.addEventListener("change", changed);
    list.append(label);
  }
  const inputs = () => [...list.querySelectorAll("input")];
  return {
    get: () => inputs().filter((input) => input.checked).map((input) => input.value),
    set: (values) => inputs().forEach((input) => (input.checked = values.includes(input.value))),
    disable: (test) => inputs().forEach((input) => ((input.disabled = test(input.value)), input.disabled && (input.checked = false))),
  };
}

export const HEATS = [
  [0.45, "careful"],
  [0.7, "calm"],
  [1.0, "lively"],
  [1.25, "wild"],
  [9, "unhinged"],
];

/** A slider for the temperature, with words for it. */
export function heat(input, output, changed) {
  const show = () => {
    const value = Number(input.value);
    const word = HEATS.find(([below]) => value < below)[1];
    output.textContent = `${word} · ${value.toFixed(2)}`;
    input.setAttribute("aria-valuetext", `${value.toFixed(2)}, ${word}`);
    input.style.setProperty("--part", (value - input.min) / (input.max - input.min));
  };
  input.addEventListener("input", () => (show(), changed()));
  show();
  return { get: () => Number(input.value), set: (value) => ((input.value = value), show()) };
}
