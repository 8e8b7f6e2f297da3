// node browser_driver.js PAGE FILE...: opens a page offline in Chromium, passes files to
// it, and prints the outcome of each as one line of JSON. Needs puppeteer-core and
// axe-core in the folder node_modules of the working directory.
const { createRequire } = require("node:module");
const path = require("node:path");
const load = createRequire(path.join(process.cwd(), "node_modules", "x.js"));
const puppeteer = load("puppeteer-core");

const fakeCamera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"];

async function main() {
  const [url, ...files] = process.argv.slice(2);
  const browser = await puppeteer.launch({
    executablePath: process.env.BROWSER,
    args: ["--no-sandbox", ...fakeCamera],
  });
  const page = await browser.newPage();
  const print = (value) => console.log(JSON.stringify(value));
  const status = () => page.$eval("#status", (element) => element.textContent);
  const wait = (pattern, name) => page.waitForFunction(
    (text, label) => new RegExp(text).test(document.getElementById("status").textContent)
      && (!label || document.getElementById("image").getAttribute("aria-label") === label),
    { timeout: 120000 }, pattern, name,
  );
  const problems = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  await page.setOfflineMode(true);
  await page.setBypassCSP(false);
  await page.setViewport({ width: 390, height: 844 });
  const begin = Date.now();
  await page.goto(url);
  await wait("Ready|could not");
  for (const file of files) {
    const name = path.basename(file);
    await (await page.$("#file")).uploadFile(file);
    await wait("labelled in|not an image|could not", name);
    print({
      name, status: await status(), seconds: (Date.now() - begin) / 1000,
      ids: await page.evaluate(() => ids && Array.from(ids)),
      classes: await page.$$eval("#shares th", (cells) => cells.map((x) => x.textContent)),
    });
  }
  await page.click("#camera");
  await wait("241 pixels, labelled in|could not");
  print({ name: "camera", status: await status() });
  await page.click("#camera");
  const overflow = await page.evaluate(
    () => document.documentElement.scrollWidth - innerWidth);
  await page.setBypassCSP(true);
  await page.setOfflineMode(false);
  await page.goto(url);
  await page.addScriptTag({ path: load.resolve("axe-core/axe.min.js") });
  const violations = await page.evaluate(
    async () => (await axe.run()).violations.map((violation) => violation.id));
  print({ name: "page", overflow, violations, problems });
  await browser.close();
}

main();
