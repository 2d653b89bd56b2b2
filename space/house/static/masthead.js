// The head of the page: its lamp (light or dark) and the notice of what went wrong at the start.

const KEY = "centralperkgpt-lamp";

export function mount(element, { props }) {
  const lamp = element.querySelector(".lamp");
  const dark = () => document.body.classList.contains("dark");
  const say = () => {
    const [now, then] = dark() ? ["Lights on", "light theme"] : ["Lights off", "dark theme"];
    lamp.querySelector("span").textContent = now;
    lamp.setAttribute("aria-label", `${now}: ${then}`);
  };
  const kept = localStorage.getItem(KEY);
  if (kept && !new URLSearchParams(location.search).has("__theme")) document.body.classList.toggle("dark", kept === "dark");
  lamp.addEventListener("click", () => {
    document.body.classList.toggle("dark");
    localStorage.setItem(KEY, dark() ? "dark" : "light");
    say();
  });
  new MutationObserver(say).observe(document.body, { attributeFilter: ["class"] });
  say();

  const notice = element.querySelector(".notice");
  notice.textContent = props.facts.notice;
  notice.hidden = !props.facts.notice;
}
