// A square to draw on, with mouse, finger, pen or the arrow keys.

const PEN = 1 / 13; // width of a stroke, as a share of the side: about MNIST's
const SENT = 140; // side of the picture that is sent
const STEP = 1 / 28; // of an arrow key

export class Pad {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed;
    this.strokes = [];
    this.open = null; // pointer that is drawing
    this.key = { x: 0.5, y: 0.5, down: false, shown: false };
    this.dirty = false;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => this.#up(event));
    canvas.addEventListener("keydown", (event) => this.#press(event));
    canvas.addEventListener("blur", () => {
      this.key.shown = this.key.down = false;
      this.render();
    });
    new ResizeObserver(() => this.render()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.render());
  }

  get empty() {
    return this.strokes.length === 0;
  }

  clear() {
    this.strokes = [];
    this.key.down = false;
    this.#change();
  }

  undo() {
    this.strokes.pop();
    this.key.down = false;
    this.#change();
  }

  // White on black, as MNIST is, whatever the page's colours. As a portable graymap: browsers put off writing a PNG
  // until they have nothing else to do.
  blob() {
    const sheet = document.createElement("canvas");
    sheet.width = sheet.height = SENT;
    const context = sheet.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "#000";
    context.fillRect(0, 0, SENT, SENT);
    this.#draw(context, SENT, "#fff");
    const colours = context.getImageData(0, 0, SENT, SENT).data;
    const grey = new Uint8Array(SENT * SENT).map((_, i) => colours[4 * i]);
    return new Blob([`P5 ${SENT} ${SENT} 255\n`, grey], { type: "image/x-portable-graymap" });
  }

  render() {
    if (this.dirty) return;
    this.dirty = true;
    requestAnimationFrame(() => {
      this.dirty = false;
      const side = Math.round(this.canvas.clientWidth * devicePixelRatio);
      if (!side) return;
      if (this.canvas.width !== side) this.canvas.width = this.canvas.height = side;
      const context = this.canvas.getContext("2d");
      context.clearRect(0, 0, side, side);
      const style = getComputedStyle(this.canvas);
      this.#draw(context, side, style.getPropertyValue("--stroke"));
      if (this.key.shown) {
        context.strokeStyle = style.getPropertyValue("--accent");
        context.lineWidth = this.key.down ? side / 60 : side / 140;
        context.beginPath();
        context.arc(this.key.x * side, this.key.y * side, (PEN * side) / 2 + side / 90, 0, 7);
        context.stroke();
      }
    });
  }

  // Curves through the middles of the segments, with the points as handles: no corners where events are sparse.
  #draw(context, side, colour) {
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = PEN * side;
    context.strokeStyle = colour;
    for (const points of this.strokes) {
      context.beginPath();
      context.moveTo(points[0].x * side, points[0].y * side);
      for (let i = 1; i < points.length - 1; i++) {
        const [a, b] = [points[i], points[i + 1]];
        context.quadraticCurveTo(a.x * side, a.y * side, ((a.x + b.x) / 2) * side, ((a.y + b.y) / 2) * side);
      }
      const last = points[points.length - 1];
      context.lineTo(last.x * side + 0.01, last.y * side);
      context.stroke();
    }
  }

  #change() {
    this.render();
    this.changed();
  }

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }

  #down(event) {
    if (this.open !== null || event.button !== 0) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.open = event.pointerId;
    this.key.shown = this.key.down = false;
    this.strokes.push([this.#at(event)]);
    this.#change();
  }

  #move(event) {
    if (event.pointerId !== this.open) return;
    const between = event.getCoalescedEvents?.() ?? [];
    const points = (between.length ? between : [event]).map((e) => this.#at(e));
    this.strokes[this.strokes.length - 1].push(...points);
    this.#change();
  }

  #up(event) {
    if (event.pointerId === this.open) this.open = null;
  }

  #press(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const key = this.key;
    if (event.ctrlKey || event.metaKey) {
      if (event.key.toLowerCase() === "z") this.undo();
      else return;
    } else if (event.key in moves) {
      const [x, y] = moves[event.key];
      key.shown = true;
      key.x = Math.min(1, Math.max(0, key.x + x * STEP));
      key.y = Math.min(1, Math.max(0, key.y + y * STEP));
      if (key.down) {
        this.strokes[this.strokes.length - 1].push({ x: key.x, y: key.y });
        this.#change();
      } else {
        this.render();
      }
    } else if (event.key === " ") {
      key.shown = true;
      key.down = !key.down;
      if (key.down) this.strokes.push([{ x: key.x, y: key.y }]);
      this.#change();
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.clear();
    } else {
      return;
    }
    event.preventDefault();
  }
}
