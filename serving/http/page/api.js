// Requests to this server. An error has the server's own words and, as `status`, its status code.

const CUT_OFF = "the connection was closed before the answer was whole";
const KEY = "splitrank-key"; // of this tab only: a key in localStorage would outlive its user

export function apiKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setApiKey(key) {
  sessionStorage.setItem(KEY, key);
  dispatchEvent(new Event("keychange"));
}

export async function getJson(path) {
  return (await ask(path, {})).json();
}

// Yields the chunks of a streamed chat. To abort `signal` closes the connection, and the server stops computing.
export async function* streamChat(body, signal) {
  const headers = { "content-type": "application/json" };
  const options = { method: "POST", headers, body: JSON.stringify({ ...body, stream: true }), signal };
  const response = await ask("v1/chat/completions", options);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    yield chunk;
  }
  throw new Error(CUT_OFF);
}

async function ask(path, options) {
  const key = apiKey();
  if (key) options.headers = { ...options.headers, authorization: `Bearer ${key}` };
  const response = await fetch(path, options).catch((error) => {
    throw inOurWords(error, "the server cannot be reached");
  });
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  const error = new Error(answer?.error?.message ?? `status ${response.status}`);
  error.status = response.status;
  throw error;
}

// A browser says only that it failed to fetch, each in its own words. What the user has aborted stays as it is.
function inOurWords(error, message) {
  return error.name === "AbortError" ? error : new Error(message);
}

// The data of server-sent events; each of this server's events is one line.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw inOurWords(error, CUT_OFF);
    });
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
  }
}
