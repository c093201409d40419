// Windows over the page.   in: a dialog of the page   out: what was chosen in it   who calls: app.js

/** Open a dialog; a click beside it or on one of its .close buttons closes it. */
export function openDialog(dialog) {
  if (dialog.open) return;
  dialog.onclick = (event) => {
    const button = event.target.closest(".close");
    if (button || event.target === dialog) dialog.close(button?.value ?? "");
  };
  dialog.showModal();
}

/** Whether a question was answered with yes. */
export function confirmed(dialog, title, words, yes) {
  dialog.querySelector("h2").textContent = title;
  dialog.querySelector("p").textContent = words;
  dialog.querySelector("button[value=yes]").textContent = yes;
  dialog.returnValue = "";
  openDialog(dialog);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
