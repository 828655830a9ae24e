// @ts-check
/** Pictures of the user's own, to be remembered: chosen, dropped or pasted, cropped to the film's shape, described. */

const PICTURE_QUALITY = 0.9;

/** @template {HTMLElement} T @param {string} id @returns {T} */
const byId = (id) => /** @type {T} */ (document.getElementById(id));

const dialog = /** @type {HTMLDialogElement} */ (byId("picture-dialog"));
const preview = /** @type {HTMLImageElement} */ (byId("picture-preview"));
const caption = /** @type {HTMLInputElement} */ (byId("picture-caption"));
const file = /** @type {HTMLInputElement} */ (byId("file"));

/**
 * @param {Object} page
 * @param {() => {width: number, height: number} | null} page.size    of the film; null: nobody may add pictures now
 * @param {(picture: string, caption: string) => void} page.add       picture: base64 of a JPEG
 * @param {(file: File) => void} page.play                            a story file was dropped
 * @param {(words: string) => void} page.tell
 */
export function takePictures({ size, add, play, tell }) {
  /** @param {File | null | undefined} given */
  const offer = async (given) => {
    const shape = size();
    if (!given || shape === null) return;
    if (/\.ya?ml$/i.test(given.name)) return play(given);
    if (!given.type.startsWith("image/")) return tell("Only pictures can be remembered: PNG, JPEG or WebP.");
    try {
      preview.src = await cropped(given, shape);
    } catch (error) {
      return tell(`This picture cannot be read: ${error instanceof Error ? error.message : error}`);
    }
    caption.value = "";
    dialog.showModal();
    return caption.focus();
  };
  byId("picture-form").addEventListener("submit", () => {
    if (caption.value.trim()) add(preview.src.split(",")[1], caption.value.trim());
  });
  byId("picture-cancel").addEventListener("click", () => dialog.close());
  byId("add").addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    offer(file.files?.[0]);
    file.value = "";
  });
  listenForDrops(offer);
}

/** @param {(given: File | null | undefined) => void} offer */
function listenForDrops(offer) {
  const target = byId("memory-box");
  addEventListener("dragover", (event) => {
    event.preventDefault();
    target.classList.add("target");
  });
  addEventListener("dragleave", (event) => event.relatedTarget === null && target.classList.remove("target"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    target.classList.remove("target");
    offer(event.dataTransfer?.files[0]);
  });
  addEventListener("paste", (event) => {
    const picture = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (picture) offer(picture);
  });
}

/** Crop a picture to the film's shape and size. @param {Blob} given @param {{width: number, height: number}} size @returns {Promise<string>} a data URL */
async function cropped(given, { width, height }) {
  const picture = await createImageBitmap(given);
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const scale = Math.max(width / picture.width, height / picture.height);
  const [w, h] = [picture.width * scale, picture.height * scale];
  canvas.getContext("2d")?.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
  return canvas.toDataURL("image/jpeg", PICTURE_QUALITY);
}
