// Labels images in the browser: a chosen, dropped or pasted file, or the camera.
"use strict";
const MOST_PIXELS = 1 << 20; // larger images are shrunk
const CAMERA_SIDE = 321;
const find = (id) => document.getElementById(id);
const classes = JSON.parse(find("classes").textContent);
const image = find("image"), labels = find("labels");
let session, ort, camera, ids;

async function unpack(id) {
  const element = find(id);
  const text = atob(element.textContent.trim());
  element.remove();
  const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function report(text) {
  find("status").textContent = text;
}

async function start() {
  const script = new Blob([await unpack("runtime")], { type: "text/javascript" });
  ort = await import(URL.createObjectURL(script));
  ort.env.wasm.wasmBinary = await unpack("wasm");
  ort.env.wasm.numThreads = 1; // several need a server with special headers
  session = await ort.InferenceSession.create(await unpack("model"));
  for (const id of ["file", "camera"]) find(id).disabled = false;
  report("Ready.");
}

function draw(source, width, height, side) {
  const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)), side / Math.max(width, height));
  for (const canvas of [image, labels]) {
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
  }
  const context = image.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0, image.width, image.height);
  return context.getImageData(0, 0, image.width, image.height).data;
}

async function label(pixels) {
  const { width, height } = image;
  const colors = new Uint8Array(3 * width * height);
  for (let i = 0, j = 0; i < pixels.length; i += 4) {
    colors[j++] = pixels[i];
    colors[j++] = pixels[i + 1];
    colors[j++] = pixels[i + 2];
  }
  const begin = performance.now();
  const input = new ort.Tensor("uint8", colors, [1, height, width, 3]);
  const outputs = await session.run({ ImageTensor: input }, ["SemanticPredictions"]);
  const seconds = (performance.now() - begin) / 1000;
  ids = outputs.SemanticPredictions.data;
  show(`${width} by ${height} pixels, labelled in ${seconds.toFixed(2)} s`);
}

function show(text) {
  const context = labels.getContext("2d");
  const shown = context.createImageData(labels.width, labels.height);
  const counts = new Array(classes.length).fill(0);
  for (let i = 0; i < ids.length; i++) {
    counts[ids[i]]++;
    const { name, color } = classes[ids[i]];
    if (name !== "background") shown.data.set([...color, 255], 4 * i);
  }
  context.putImageData(shown, 0, 0);
  const order = counts.map((_, id) => id).filter((id) => counts[id]);
  order.sort((a, b) => counts[b] - counts[a]);
  const rows = order.map((id) => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    const swatch = document.createElement("i");
    head.scope = "row";
    swatch.className = "swatch";
    swatch.style.background = `rgb(${classes[id].color})`;
    head.append(swatch, classes[id].name);
    const cell = document.createElement("td");
    cell.textContent = (100 * counts[id] / ids.length).toFixed(2);
    row.append(head, cell);
    return row;
  });
  find("shares").replaceChildren(...rows);
  find("result").hidden = false;
  report(text);
}

async function open(file) {
  if (!session || !file) return;
  await stopCamera();
  image.setAttribute("aria-label", file.name);
  report(`Labelling ${file.name}…`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    report(`${file.name} is not an image that this browser can read.`);
    return;
  }
  await new Promise((done) => setTimeout(done)); // shows the message
  try {
    await label(draw(bitmap, bitmap.width, bitmap.height, Infinity));
  } catch (error) {
    report(`${file.name} could not be labelled: ${error.message}`);
  }
}

async function startCamera() {
  const video = document.createElement("video");
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
  } catch (error) {
    report(`The camera could not be opened: ${error.message}`);
    return;
  }
  find("camera").textContent = "Stop the camera";
  image.setAttribute("aria-label", "Camera");
  await video.play();
  let isRunning = true;
  const loop = (async () => {
    while (isRunning) {
      await label(draw(video, video.videoWidth, video.videoHeight, CAMERA_SIDE));
      await new Promise(requestAnimationFrame);
    }
  })();
  camera = async () => {
    isRunning = false;
    await loop;
    video.srcObject.getTracks().forEach((track) => track.stop());
  };
}

async function stopCamera() {
  if (!camera) return;
  const stop = camera;
  camera = undefined;
  find("camera").textContent = "Start the camera";
  await stop();
}

find("file").addEventListener("change", (event) => open(event.target.files[0]));
find("camera").addEventListener("click", () => camera ? stopCamera() : startCamera());
find("opacity").addEventListener("input", (event) => {
  labels.style.opacity = event.target.value;
});
labels.style.opacity = find("opacity").value;
labels.addEventListener("pointermove", (event) => {
  const box = labels.getBoundingClientRect();
  const x = Math.floor((event.clientX - box.left) / box.width * labels.width);
  const y = Math.floor((event.clientY - box.top) / box.height * labels.height);
  find("readout").textContent = classes[ids[y * labels.width + x]]?.name ?? "";
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", () => document.body.classList.remove("dragging"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  open(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => open(event.clipboardData.files[0]));
start().catch((error) => report(`The model could not be loaded: ${error.message}`));
