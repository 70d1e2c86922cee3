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
  const blob = kept ? stored(address) : await (await asked(address)).blob();
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
  const { type, content } = kept.pictures[address] ?? {};
  if (!type) throw new Error("This file does not hold the picture.");
  return new Blob([Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))], { type });
}
