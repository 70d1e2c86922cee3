// What the page knows: answers of the server, or of the file that 'cocoseg view --export' wrote.

const embedded = document.querySelector("#embedded");
const kept = embedded ? JSON.parse(embedded.textContent) : null;

/** Whether the page is a file without a server. */
export const isFile = kept !== null;

/** Fetch JSON; throws an Error with what the server says is wrong. */
export async function getJson(address) {
  if (kept) {
    if (address in kept.json) return kept.json[address];
    throw new Error("This file holds samples alone; 'cocoseg view' shows the rest.");
  }
  return (await asked(address)).json();
}

/** Fetch text. */
export async function getText(address) {
  return (await asked(address)).text();
}

/** Fetch a picture. */
export async function getImage(address) {
  return decode(await (await asked(address)).blob());
}

/** Fetch several pictures at once, see `Answers.encode_layers`; an Error stands for a missing one. */
export async function getImages(address) {
  const content = kept ? stored(address) : await (await asked(address)).arrayBuffer();
  const view = new DataView(content);
  const parts = [];
  for (let at = 0; at < content.byteLength;) {
    const [isMessage, length] = [view.getUint8(at), view.getUint32(at + 1, true)];
    const part = content.slice(at + 5, at + 5 + length);
    parts.push(isMessage ? new Error(new TextDecoder().decode(part)) : decode(new Blob([part])));
    at += 5 + length;
  }
  return Promise.all(parts);
}

function decode(blob) {
  return createImageBitmap(blob, { colorSpaceConversion: "none" });
}

async function asked(address) {
  let answer;
  try {
    answer = await fetch(address);
  } catch {
    throw new Error("The server does not answer. Is 'cocoseg view' still running?");
  }
  if (answer.ok) return answer;
  let problem = `${answer.status} ${answer.statusText}`;
  try {
    problem = (await answer.json()).error;
  } catch {
    // not from our own code
  }
  throw new Error(problem);
}

function stored(address) {
  return Uint8Array.from(atob(kept.pictures[address]), (letter) => letter.charCodeAt(0)).buffer;
}
