// In a frame, a browser may keep the page from remembering anything, and the very word `localStorage` is an error, in Gradio's scripts
// too. Then what is to be remembered is remembered until the page is left. Runs before all other scripts.

try {
  localStorage.length;
} catch {
  const kept = new Map();
  const value = {
    getItem: (key) => kept.get(key) ?? null,
    setItem: (key, text) => void kept.set(key, String(text)),
    removeItem: (key) => void kept.delete(key),
  };
  Object.defineProperty(window, "localStorage", { value });
}
