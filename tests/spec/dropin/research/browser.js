// Opens page.js outside of a browser: `node --experimental-websocket browser.js HOST:PORT READER QUERY`. It has the
// elements of page.html, and writes a line of JSON whenever what they show has changed. It ends with the answer.

const fs = require("node:fs");
const vm = require("node:vm");

const [host, reader, query] = process.argv.slice(2);
const ids = [...fs.readFileSync("page.html", "utf8").matchAll(/id="(\w+)"/g)].map(([, id]) => id);
const elements = Object.fromEntries(ids.map((id) => [id, {}]));
const items = (html) => [...html.matchAll(/<li>(.*?)<\/li>/gs)].map(([, text]) => text);

const page = { document: { getElementById: (id) => elements[id] }, location: { host }, fetch, WebSocket };
vm.createContext(page);
vm.runInContext(fs.readFileSync("page.js", "utf8"), page);

let shown = "";
const draw = page.draw;
page.draw = () => {
  draw();
  const { tools, finders, bar, answer } = elements;
  const screen = JSON.stringify({
    tools: items(tools.innerHTML),
    finders: items(finders.innerHTML),
    bar: bar.value,
    answer: answer.textContent,
  });
  if (screen !== shown) {
    console.log(screen);
    shown = screen;
  }
  if (answer.textContent) {
    socket.then((open) => open.close());
  }
};
const socket = page.order(reader, query);
