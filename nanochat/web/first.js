// The chosen theme, before the page is first drawn.   in: localStorage   out: <html data-theme>
// who calls: index.html, as the one script that is no module: those run after the first frame
// Read next: theme.js.

try {
  const chosen = localStorage.getItem("nanochat.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // A browser that keeps nothing shows what the system has chosen.
}
