// Turns the figures of an image into one with a slider that fades it into its label
// maps, and names the classes under the pointer. Without scripts, all figures are shown.
"use strict";
const names = new Map();
for (const swatch of document.querySelectorAll(".swatch")) {
  const [red, green, blue] = swatch.style.backgroundColor.match(/\d+/g);
  names.set(`${red},${green},${blue}`, swatch.dataset.name);
}

function readPixels(image) {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context;
}

function addSlider(viewer) {
  const figures = [...viewer.querySelectorAll("figure")];
  const layers = figures.filter((f) => f.textContent !== "Errors");
  const captions = layers.map((figure) => figure.textContent);
  const [first, ...others] = layers;
  const stack = document.createElement("div");
  stack.className = "stack";
  stack.append(first.querySelector("img"));
  const maps = others.map((figure) => figure.querySelector("img"));
  for (const [i, map] of maps.entries()) {
    map.style.opacity = 0;
    stack.append(map);
    others[i].remove();
  }
  const label = document.createElement("label");
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: 0, max: maps.length, step: 0.05, value: 0 });
  slider.setAttribute("aria-label", `${captions.join(", ")} of ${viewer.dataset.viewer}`);
  const marks = document.createElement("span");
  marks.className = "marks";
  for (const [i, caption] of captions.entries()) {
    const mark = document.createElement("button");
    mark.type = "button";
    mark.textContent = caption;
    mark.addEventListener("click", () => { slider.value = i; show(); });
    marks.append(mark);
  }
  label.append(slider);
  const readout = document.createElement("p");
  readout.className = "readout";

  function show() {
    const value = Number(slider.value);
    for (const [i, map] of maps.entries()) {
      map.style.opacity = Math.min(1, Math.max(0, value - i));
    }
    const [low, high] = [Math.floor(value), Math.ceil(value)];
    const share = Math.round(100 * (value - low));
    const text = low === high ? captions[low]
      : `${captions[low]}, ${share}% ${captions[high]}`;
    slider.setAttribute("aria-valuetext", text);
    for (const [i, mark] of [...marks.children].entries()) {
      mark.setAttribute("aria-pressed", String(i === value));
    }
  }

  let contexts;
  stack.addEventListener("pointermove", (event) => {
    contexts ??= maps.map(readPixels);
    const box = stack.getBoundingClientRect();
    const texts = contexts.map((context, i) => {
      const { width, height } = context.canvas;
      // As drawn by `object-fit: contain`.
      const scale = Math.max(width / box.width, height / box.height);
      const x = Math.min(width - 1, Math.floor((event.clientX - box.left) * scale));
      const y = Math.min(height - 1, Math.floor((event.clientY - box.top) * scale));
      const color = context.getImageData(Math.max(0, x), Math.max(0, y), 1, 1).data;
      const name = names.get(`${color[0]},${color[1]},${color[2]}`) ?? "not scored";
      return `${captions[i + 1]}: ${name}`;
    });
    readout.textContent = texts.join(" · ");
  });
  stack.addEventListener("pointerleave", () => { readout.textContent = ""; });
  slider.addEventListener("input", show);
  first.querySelector("figcaption").replaceWith(label, marks, readout);
  first.prepend(stack);
  viewer.classList.add("sliding");
  show();
}

for (const viewer of document.querySelectorAll("[data-viewer]")) addSlider(viewer);
