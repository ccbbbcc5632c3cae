// Asking the server, and asking it again only when it has answered.

export class Problem extends Error {}

// The answer of `path`. Raises Problem with the server's sentence.
export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", ...options });
  } catch {
    throw new Problem("The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  let sentence = `The server answered with status ${answer.status}.`;
  try {
    sentence = (await answer.json()).error ?? sentence;
  } catch {
    // not one of its own sentences
  }
  throw new Problem(sentence);
}

const PACE = 25; // milliseconds between two runs at least: a drawing changes faster than anybody can follow

// A function that runs `work` at once, or as soon as the run before has ended: never two at a time, and of all calls
// that come meanwhile only the last one.
export function latest(work, failed) {
  let running = false;
  let again = null;
  return async function run(...values) {
    again = values;
    if (running) return;
    running = true;
    while (again) {
      const now = again;
      again = null;
      const begun = performance.now();
      try {
        await work(...now);
      } catch (error) {
        if (!(error instanceof Problem)) {
          running = false;
          throw error;
        }
        failed(error.message);
      }
      const left = PACE - (performance.now() - begun);
      if (again && left > 0) await new Promise((resolve) => setTimeout(resolve, left));
    }
    running = false;
  };
}
