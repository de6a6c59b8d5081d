// Vercel's `ai` package over `@ai-sdk/openai-compatible`.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, streamText, tool } from "ai";
import { ANSWER, QUESTION, check, finish, tried } from "./tried.mjs";

const provider = createOpenAICompatible({
  name: "splitrank",
  baseURL: process.argv[2] + "/v1",
  supportsStructuredOutputs: true,
});
const common = { model: provider("demo"), temperature: 0, maxOutputTokens: 200, maxRetries: 0 };
const weather = tool({
  description: "The weather in a city",
  inputSchema: jsonSchema({ type: "object", properties: { city: { type: "string" } }, required: ["city"] }),
});

await tried("generateText, thoughts apart, usage", async () => {
  const answer = await generateText({ ...common, prompt: QUESTION });
  check(answer.text.endsWith(ANSWER), answer.text);
  check(answer.reasoningText);
  check(answer.usage.outputTokens > 0);
  check(answer.finishReason === "stop", answer.finishReason);
});
await tried("streamText", async () => {
  let text = "";
  for await (const part of streamText({ ...common, prompt: QUESTION }).textStream) text += part;
  check(text.endsWith(ANSWER), text);
});
await tried("a tool by name", async () => {
  const answer = await generateText({
    ...common,
    maxOutputTokens: 60,
    prompt: QUESTION,
    tools: { weather },
    toolChoice: { type: "tool", toolName: "weather" },
  });
  check(answer.toolCalls[0]?.toolName === "weather", JSON.stringify(answer.toolCalls));
});
await tried("structured output", async () => {
  const schema = jsonSchema({
    type: "object",
    properties: { right: { type: "boolean" } },
    required: ["right"],
    additionalProperties: false,
  });
  const answer = await generateText({ ...common, prompt: QUESTION, output: Output.object({ schema }) });
  check(typeof answer.output.right === "boolean", answer.text);
});
finish();
