// Settings in the link (behind the #, so that they never reach a server's log), and things to take away.

const TEXTS = ["character", "title", "place"];

export function toLink(settings, revision) {
  const query = new URLSearchParams();
  for (const name of TEXTS) if (settings[name]) query.set(name, settings[name]);
  query.set("temperature", settings.temperature);
  if (settings.cast) query.set("cast", settings.cast.join(","));
  if (settings.lines) query.set("lines", settings.lines.join("-"));
  query.set("seed", settings.seed);
  if (revision) query.set("revision", revision);
  return `${location.origin}${location.pathname}#${query}`;
}

/** The settings in the page's own link, or null. They are as untrusted as anything typed. */
export function fromLink() {
  const query = new URLSearchParams(location.hash.slice(1));
  if (!query.has("seed")) return null;
  const settings = { seed: query.get("seed") };
  for (const name of TEXTS) if (query.get(name)) settings[name] = query.get(name);
  if (query.get("temperature")) settings.temperature = Number(query.get("temperature"));
  if (query.get("cast")) settings.cast = query.get("cast").split(",");
  if (query.get("lines")) settings.lines = query.get("lines").split("-").map(Number);
  if (query.get("revision")) settings.revision = query.get("revision");
  return settings;
}

export async function copy(text) {
  try {
    return await navigator.clipboard.writeText(text);
  } catch {
    // there is none on a plain http page, and a frame may not use it unless the page around it lets it: the old way
  }
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "sr-only";
  document.body.append(area);
  area.select();
  const worked = document.execCommand("copy");
  area.remove();
  if (!worked) throw new Error("the browser does not let this page copy");
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export const fileName = (title) => (title || "a scene").toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60);
