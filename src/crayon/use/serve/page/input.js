// The card where people draw, or choose, paste or drop a picture.

import { latest } from "/api.js";
import { Pad } from "/draw.js";

const AS_IT_IS = 4 * 2 ** 20; // bytes of a file that is sent unchanged; a larger one is made smaller first
const SHRUNK = 1024;

// What an HTML template holds, to be put into the page.
export function copy(id) {
  return document.getElementById(id).content.cloneNode(true);
}

async function shrunk(file) {
  if (file.size <= AS_IT_IS) return file;
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, SHRUNK / Math.min(bitmap.width, bitmap.height));
  const sheet = document.createElement("canvas");
  sheet.width = Math.round(bitmap.width * scale);
  sheet.height = Math.round(bitmap.height * scale);
  sheet.getContext("2d").drawImage(bitmap, 0, 0, sheet.width, sheet.height);
  return new Promise((resolve) => sheet.toBlob(resolve, "image/jpeg", 0.95));
}

// Adds the card to a panel. `send(blob, kind)` is called with what there is to show, `send(null)`
// when there is nothing any more.
export function input(panel, model, what, send) {
  panel.append(copy("input"));
  const part = (name) => panel.querySelector(`.input ${name}`);
  const draws = model.channels === 1;
  const [box, photo, hint, problem] = [part(".pad"), part(".photo"), part(".hint"), part(".problem")];
  part(".title").textContent = draws ? `Draw ${what}` : "Choose a picture";
  hint.textContent = draws ? "Draw here\nwith mouse, finger or pen" : "Drop a picture here,\npaste one, or choose one below";
  box.classList.toggle("drawable", draws);
  part(".undo").hidden = !draws;
  let pad = null;

  const refresh = () => {
    hint.hidden = !photo.hidden || (pad !== null && !pad.empty);
    part(".clear").disabled = photo.hidden && (pad === null || pad.empty);
    part(".undo").disabled = pad === null || pad.empty;
  };
  const forget = () => {
    if (photo.src) URL.revokeObjectURL(photo.src);
    photo.removeAttribute("src");
    photo.hidden = true;
    part("input").value = "";
  };
  const fail = (sentence) => (problem.textContent = sentence);
  const deliver = latest(async (get, kind) => {
    const blob = await get();
    await send(blob, kind);
    problem.textContent = "";
  }, fail);

  if (draws) {
    part("canvas").setAttribute(
      "aria-label",
      "Drawing area. The arrow keys move the pen, space puts it down or lifts it, delete clears. " +
        "Or choose a picture below.",
    );
    pad = new Pad(part("canvas"), () => {
      forget();
      refresh();
      if (pad.empty) deliver(() => null);
      else deliver(() => pad.blob(), "drawing");
    });
  } else {
    part("canvas").remove();
  }

  async function take(file) {
    if (!file) return;
    pad?.clear();
    forget();
    photo.src = URL.createObjectURL(file);
    photo.hidden = false;
    photo.onerror = () => {
      photo.hidden = true;
      refresh();
    };
    refresh();
    deliver(async () => {
      try {
        return await shrunk(file);
      } catch {
        return file; // the server says what is wrong with it
      }
    }, draws ? "drawing" : "picture");
  }

  part(".undo").addEventListener("click", () => pad.undo());
  part(".clear").addEventListener("click", () => {
    forget();
    if (pad) pad.clear();
    else deliver(() => null);
    refresh();
  });
  part("input").addEventListener("change", (event) => take(event.target.files[0]));
  addEventListener("paste", (event) => {
    if (!panel.hidden) take([...event.clipboardData.files].find((f) => f.type.startsWith("image/")));
  });
  for (const kind of ["dragenter", "dragover"]) {
    box.addEventListener(kind, (event) => {
      event.preventDefault();
      box.classList.add("dragged");
    });
  }
  box.addEventListener("dragleave", () => box.classList.remove("dragged"));
  box.addEventListener("drop", (event) => {
    event.preventDefault();
    box.classList.remove("dragged");
    take(event.dataTransfer.files[0]);
  });
  refresh();
}
