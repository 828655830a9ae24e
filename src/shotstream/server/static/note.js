// @ts-check
/** What the page says by itself: to a screen reader, and, where nothing else on the page shows it, to the eye too. */

const SHOWN_MS = 7000;

const spoken = /** @type {HTMLElement} */ (document.getElementById("announce"));
const note = /** @type {HTMLElement} */ (document.getElementById("note"));
let announced = "";
/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer = undefined;

/** Tell a screen reader what can be seen anyway. @param {string} words */
export function announce(words) {
  spoken.textContent = words === announced ? `${words} ` : words; // the very same again would not be read
  announced = words;
}

/** Tell everybody: read out, and shown for some seconds over all that is open, be it a picture in fullscreen. @param {string} words */
export function tell(words) {
  announce(words);
  clear();
  note.textContent = words;
  note.showPopover?.(); // a browser without popovers shows it as part of the page
  timer = setTimeout(clear, SHOWN_MS);
}

function clear() {
  clearTimeout(timer);
  note.hidePopover?.();
  note.textContent = "";
}
