// What a visitor's browser remembers. In a frame it may be told to remember nothing: then nothing is remembered, and that is all.

export function recall(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

export function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // a frame on a page whose visitors keep strangers' cookies out, or a full store
  }
}
