// The Code tab: the same scene through the API, with the settings of the form filled in.

import { make } from "./cast.js";
import { latest } from "./order.js";
import { copy } from "./share.js";

const here = () => new URL(".", document.baseURI).href.replace(/\/$/, "");
const python = (value) => JSON.stringify(value);
const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

export function snippets(settings) {
  const given = { ...settings };
  if (Number.isSafeInteger(Number(given.seed))) given.seed = Number(given.seed); // a longer one stays text, and is taken so
  const words = Object.entries(given);
  const listed = words.map(([name, value]) => `${name}=${python(value)}`).join(", ");
  return {
    Python: `from gradio_client import Client

client = Client("${here()}")
scene = client.predict(${listed}, api_name="/scene")
print(scene["text"])

for part in client.submit(${listed}, api_name="/scene"):
    print(part)  # the text so far; at the end the scene as a dictionary`,
    JavaScript: `import { Client } from "@gradio/client";

const client = await Client.connect("${here()}");
for await (const event of client.submit("/scene", ${JSON.stringify(given)})) {
  if (event.type === "data") console.log(event.data[0]);
}
client.close();`,
    curl: `EVENT=$(curl -s ${here()}/gradio_api/call/v2/scene -H 'Content-Type: application/json' \\
  -d ${shell(JSON.stringify(given))} | cut -d '"' -f 4)
curl -sN ${here()}/gradio_api/call/v2/scene/$EVENT`,
    MCP: JSON.stringify({ mcpServers: { centralperkgpt: { url: `${here()}/gradio_api/mcp/` } } }, null, 2),
  };
}

const NOTES = {
  Python: "pip install gradio_client. The first way waits for the scene, the second follows it as it is typed.",
  JavaScript: "npm install @gradio/client.",
  curl: "Server-sent events, no library needed.",
  MCP: "For Claude, Cursor and other clients of the Model Context Protocol: the tools are called scene, reply and characters.",
};

export function mount(element) {
  const list = element.querySelector(".snippets");
  const boxes = Object.fromEntries(
    Object.keys(NOTES).map((name) => {
      const code = make("code");
      const button = make("button", { type: "button", className: "quiet", textContent: "Copy" });
      button.addEventListener("click", async () => {
        await copy(code.textContent);
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = "Copy"), 1500);
      });
      list.append(make("section", { id: `snippet-${name}` }, make("div", { className: "head" }, make("h3", { textContent: name }), button), make("p", { textContent: NOTES[name] }), make("pre", { tabIndex: 0 }, code)));
      return [name, code];
    }),
  );
  const show = (settings) => Object.entries(snippets(settings)).forEach(([name, text]) => (boxes[name].textContent = text));
  document.addEventListener("house:settings", () => show(latest.settings));
  show(latest.settings);
}
