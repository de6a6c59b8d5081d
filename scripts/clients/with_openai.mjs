// The npm package `openai`: chats, completions, responses, streams, errors.
import OpenAI from "openai";
import { ANSWER, QUESTION, check, finish, tried } from "./tried.mjs";

const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none", maxRetries: 0 });
const chat = { model: "demo", messages: [{ role: "user", content: QUESTION }], temperature: 0, max_tokens: 200 };

await tried("models", async () => {
  check((await client.models.list()).data[0].id === "demo");
});
await tried("chat, thoughts apart", async () => {
  const { message } = (await client.chat.completions.create(chat)).choices[0];
  check(message.content.endsWith(ANSWER), message.content);
  check(message.reasoning_content);
});
await tried("chat, streamed", async () => {
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...chat, stream: true }))
    text += chunk.choices[0]?.delta?.content ?? "";
  check(text.endsWith(ANSWER), text);
});
await tried("a stream given up", async () => {
  const stream = await client.chat.completions.create({ ...chat, stream: true });
  for await (const _ of stream) break;
});
await tried("completions", async () => {
  const body = { model: "demo", prompt: `Question: ${QUESTION}\nAnswer:`, max_tokens: 64, temperature: 0 };
  check((await client.completions.create(body)).choices[0].text.includes(ANSWER));
});
await tried("responses, whole and streamed", async () => {
  const body = { model: "demo", input: QUESTION, temperature: 0, max_output_tokens: 200 };
  check((await client.responses.create(body)).output_text.endsWith(ANSWER));
  const final = await client.responses.stream(body).finalResponse();
  check(final.output_text.endsWith(ANSWER));
});
await tried("errors are the package's own", async () => {
  try {
    await client.chat.completions.create({ ...chat, temperature: 9 });
  } catch (error) {
    return check(error instanceof OpenAI.BadRequestError, String(error));
  }
  check(false, "it was taken");
});
finish();
