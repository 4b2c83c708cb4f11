// Typed questions by the AI SDK: docs/javascript.md#the-ai-sdk
//
//   npm install ai@7 @ai-sdk/openai@4
//   node ai_sdk.mjs http://localhost:8000
import { createOpenAI } from "@ai-sdk/openai";
import { experimental_decide as decide } from "ai";

const url = process.argv[2] ?? "http://localhost:8000";
const { data } = await (await fetch(`${url}/v1/models`)).json();
const abmll = createOpenAI({ baseURL: `${url}/v1`, apiKey: process.env.ABMLL_API_KEY ?? "unused" });

const { answers, response } = await decide({
  model: abmll.decisionModel(process.argv[3] ?? data[0].id), // or an adapter, or a name
  state: { subject: "Duplicate charge", message: "I was charged twice. Please help today." },
  questions: {
    urgent: { type: "boolean", instructions: "Does the customer ask for help at once?" },
    team: {
      type: "choice",
      instructions: "Which team answers it?",
      criteria: { billing: "Payments and refunds.", delivery: null },
    },
    anger: { type: "score", instructions: "How angry is the customer?", criteria: ["calm", "annoyed", "furious"] },
  },
});
console.log(response.modelId);
console.log("urgent", answers.urgent.probability);
console.log("team", answers.team.choice, answers.team.probabilities);
console.log("anger", answers.anger.score, answers.anger.probabilities);
