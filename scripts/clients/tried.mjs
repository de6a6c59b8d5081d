// What the programs beside share: checks by name, a line for each on stdout, exit code 1 if one fails.
export const QUESTION = "Mia has 14 shells. Leo has three times as many. How many shells do they have together?";
export const ANSWER = "#### 56";
let failed = 0;

export function check(condition, said = "") {
  if (!condition) throw new Error(`not so: ${said}`);
}

export async function tried(name, work) {
  try {
    await work();
    console.log(`ok ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED ${name}: ${String(error).replace(/\s+/g, " ").slice(0, 300)}`);
  }
}

export function finish() {
  process.exit(failed ? 1 : 0);
}
