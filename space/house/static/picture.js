// A scene as a picture: paper, portraits and words on a canvas.

import { nice, portrait } from "./cast.js";

const WIDTH = 1080;
const EDGE = 72;
const FACE = 76;
const WORDS = "26px 'Nunito Sans', sans-serif";

const load = (source) =>
  new Promise((resolve, reject) => {
    const image = new Image(FACE * 2, FACE * 2);
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error(`no picture at ${source}`));
    image.src = source;
  });

function wrap(pen, text, width) {
  const rows = [""];
  for (const word of text.split(" ")) {
    const longer = rows.at(-1) ? `${rows.at(-1)} ${word}` : word;
    if (pen.measureText(longer).width <= width) rows[rows.length - 1] = longer;
    else rows.push(word);
  }
  return rows;
}

/** The blocks of a scene as a PNG. `people` is a map from names to colours. */
export async function draw(parts, people) {
  await Promise.all([document.fonts.load("700 40px Fraunces"), document.fonts.load(WORDS), document.fonts.load("700 24px 'Nunito Sans'")]);
  const faces = new Map();
  for (const { speaker } of parts) if (speaker && !faces.has(speaker)) faces.set(speaker, await load(portrait(speaker)));
  const canvas = document.createElement("canvas");
  const pen = canvas.getContext("2d");

  const paint = (really) => {
    let y = EDGE;
    const say = (text, font, colour, x, height, width = WIDTH - EDGE - x) => {
      pen.font = font;
      for (const row of wrap(pen, text, width)) {
        y += height;
        if (really) (pen.fillStyle = colour), pen.fillText(row, x, y);
      }
    };
    for (const { kind, speaker, text } of parts) {
      if (kind === "title") say(text, "700 42px Fraunces, serif", "#3a2416", EDGE, 52), (y += 10);
      else if (kind === "place") say(text, "700 22px 'Nunito Sans', sans-serif", "#a4501f", EDGE, 32), (y += 26);
      else if (kind === "direction") say(`(${text})`, "italic 25px 'Courier Prime', monospace", "#6d5643", EDGE + FACE + 26, 34), (y += 20);
      else {
        const top = y;
        if (really) {
          pen.save();
          pen.beginPath();
          pen.arc(EDGE + FACE / 2, top + FACE / 2, FACE / 2, 0, 7);
          pen.clip();
          pen.drawImage(faces.get(speaker), EDGE, top, FACE, FACE);
          pen.restore();
        }
        y -= 4;
        say(nice(speaker), "700 23px 'Nunito Sans', sans-serif", people.get(speaker)?.day ?? "#6d5643", EDGE + FACE + 26, 30);
        say(text, WORDS, "#35261c", EDGE + FACE + 26, 36);
        y = Math.max(y, top + FACE) + 22;
      }
    }
    y += 34;
    if (really) (pen.font = "600 20px 'Nunito Sans', sans-serif"), (pen.fillStyle = "#937d66"), pen.fillText("written by centralperkGPT, a very small GPT", EDGE, y);
    return y + EDGE - 16;
  };

  canvas.width = WIDTH;
  canvas.height = paint(false);
  pen.fillStyle = "#fffaf2";
  pen.fillRect(0, 0, WIDTH, canvas.height);
  pen.fillStyle = "#a4501f";
  pen.fillRect(0, 0, WIDTH, 12);
  paint(true);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
