// Starts Surfpool without a network, says on one line where it answers, and ends with its parent.
//
//     node surfpool.mjs <directory with node_modules> <milliseconds a slot>

import { once } from "node:events";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { json } from "node:stream/consumers";

// It queues an event a slot, for whoever might read them, and drops none.
const DRAIN_MS = 200;

const [home, slotTimeMs] = process.argv.slice(2);
// The package is one native module, made for CommonJS.
const { Surfnet } = createRequire(join(resolve(home), "package.json"))(
  "@solana/surfpool-linux-x64-gnu",
);

const surfnet = Surfnet.startWithConfig({
  offline: true,
  blockProductionMode: "clock",
  slotTimeMs: Number(slotTimeMs),
});
setInterval(() => surfnet.drainEvents(), DRAIN_MS);

async function ask(request) {
  const response = await fetch(surfnet.rpcUrl, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(request),
  });
  return response.json();
}

// Surfpool 1.5.0 takes the minContextSlot of getBlockHeight for the slot of a block whose height
// is wanted, and has no block where no transaction was. A validator answers with its newest height,
// unless it has not seen that slot: so does getSlot. All else is Surfpool's own answer.
async function answer(request) {
  const config = request.params?.[0];
  if (request.method !== "getBlockHeight" || config?.minContextSlot === undefined) {
    return ask(request);
  }
  const slot = await ask({ ...request, method: "getSlot" });
  const { minContextSlot, ...rest } = config;
  return slot.error ? slot : ask({ ...request, params: [rest] });
}

const server = createServer(async (request, response) => {
  try {
    const body = JSON.stringify(await answer(await json(request)));
    response.writeHead(200, { "Content-Type": "application/json" }).end(body);
  } catch (error) {
    response.writeHead(502).end(String(error));
  }
});

function stop() {
  surfnet.stop();
  process.exit(0);
}

process.on("SIGTERM", stop);
process.stdin.on("close", stop).resume();

await once(server.listen(0, "127.0.0.1"), "listening");
const rpcUrl = `http://127.0.0.1:${server.address().port}`;
process.stdout.write(`${JSON.stringify({ rpcUrl, wsUrl: surfnet.wsUrl })}\n`);
