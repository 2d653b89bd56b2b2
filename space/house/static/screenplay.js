// The text of a scene, as far as it has come, as blocks: title, place, directions and lines. Knows nothing of the page.

/**
 * Blocks of `{ kind, speaker, text, closed }`; `text` is what is to be typed, without "SCENE: ", "NAME: " and brackets.
 * A line is there as soon as its speaker is certain: "PH" is enough where one name starts so.
 */
export function blocks(text, names, ended = false) {
  const found = [];
  let placed = false;
  const rows = text.split("\n");
  rows.forEach((row, index) => {
    const closed = ended || index < rows.length - 1;
    if (row === "") return;
    if (!placed && "SCENE: ".startsWith(row.slice(0, 7)) && (row.length >= 7 || !closed)) {
      if (row.length < 7) return;
      placed = true;
      found.push({ kind: "place", text: row.slice(7), closed });
    } else if (!placed && found.length === 0) {
      found.push({ kind: "title", text: row, closed });
    } else if (row.startsWith("(")) {
      const end = row.endsWith(")") ? -1 : undefined;
      found.push({ kind: "direction", text: row.slice(1, end), closed });
    } else {
      const colon = row.indexOf(": ");
      if (colon > 0) {
        found.push({ kind: "line", speaker: row.slice(0, colon), text: row.slice(colon + 2), closed });
      } else {
        const fit = names.filter((name) => name.startsWith(row.replace(/:$/, "")));
        if (fit.length === 1) found.push({ kind: "line", speaker: fit[0], text: "", closed });
      }
    }
  });
  return found;
}
