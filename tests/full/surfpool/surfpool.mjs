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

// Where Surfpool 1.5.0 heeds minContextSlot, it means something else by it: as the height of a block
// in that slot, where a validator answers with its newest height (and Surfpool has no block where no
// transaction was), and as the slot where a history begins, so that all before is left out.
// A validator only wants to have seen that slot, and so does getSlot, which is asked first.
const MENDED = { getBlockHeight: 0, getSignaturesForAddress: 1 };

async function answer(request) {
  const at = MENDED[request.method];
  const { minContextSlot, ...rest } = request.params?.[at] ?? {};
  if (minContextSlot === undefined) {
    return ask(request);
  }
  const { commitment } = rest;
  const slot = await ask({ ...request, method: "getSlot", params: [{ commitment, minContextSlot }] });
  return slot.error ? slot : ask({ ...request, params: request.params.with(at, rest) });
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
