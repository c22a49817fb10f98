"use strict";
const dialog = document.getElementById("zoom");
for (const button of document.querySelectorAll("button.zoom")) {
  button.addEventListener("click", () => {
    const picture = dialog.querySelector("img");
    picture.src = button.firstElementChild.src;
    picture.alt = button.firstElementChild.alt;
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copy).content.textContent;
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without permission for the clipboard (some browsers, for local files) a selection can still be copied.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = label; }, 1500);
  });
}
