// Requests of the page as curl, Python and JavaScript.
import { partsOf } from "./calibration.js";
import { chosenCases } from "./learn.js";
import { wireCases, wireQuestion } from "./questions.js";

export const LANGUAGES = { curl: "curl", python: "Python", javascript: "JavaScript" };
export const REQUESTS = { learn: "Learn from the cases", ask: "Ask about the selected input" };

/** Return a body of `POST /v1/decisions` that does what the page does: of two requests, the first. */
export function bodyOf(request, state) {
  const questions = state.questions.map(wireQuestion);
  const { cases } = wireCases(state.questions, chosenCases(state));
  const row = state.inputs.find((one) => one.id === state.selected) ?? state.inputs[0];
  const input = row?.input ?? cases[0]?.input ?? "";
  const model = state.server?.model ?? "";
  if (request === "learn") return { model, input, questions, abmll: { cases, adapt: { effort: state.effort }, samples: state.samples } };
  const [{ questions: asked, gate } = { questions: [], gate: {} }] = partsOf(state);
  return { model: state.version?.model ?? model, input, questions: asked.map(wireQuestion), abmll: { samples: state.samples, gate } };
}

/** Return the request as source text; `keyed` says whether the server wants a key. */
export function snippet(language, body, home, keyed) {
  if (language === "curl") {
    const key = keyed ? ` -H "authorization: Bearer $ABMLL_API_KEY"` : "";
    return `curl -s ${home}/v1/decisions${key} -H 'content-type: application/json' -d '${JSON.stringify(body, null, 1).replaceAll("'", "'\\''")}'\n`;
  }
  if (language === "javascript") {
    const key = keyed ? ", { key: process.env.ABMLL_API_KEY }" : "";
    return `// curl -sO ${home}/playground/client.js\nimport { Client } from "./client.js";\n\nconst client = new Client("${home}"${key});\nconst decision = await client.decide(${JSON.stringify(body, null, 2)});\nconsole.log(JSON.stringify(decision.answers, null, 1));\n`;
  }
  const { model, input, questions, abmll } = body;
  const key = keyed ? 'os.environ["ABMLL_API_KEY"]' : '"unused"';
  return `${keyed ? "import os\n\n" : ""}import openai\n\nclient = openai.OpenAI(base_url="${home}/v1", api_key=${key})\ndecision = client.decisions.create(\n    model=${python(model)},\n    input=${python(input)},\n    questions=${python(questions, 4)},\n    extra_body={"abmll": ${python(abmll, 4)}},\n)\nprint(decision.model_dump_json(indent=1))\n`;
}

/** Write a JSON value as Python does. */
function python(value, indent = 0) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const parts = Array.isArray(value) ? value.map((part) => python(part, indent + 4))
    : Object.entries(value).map(([key, part]) => `${JSON.stringify(key)}: ${python(part, indent + 4)}`);
  const [open, shut] = Array.isArray(value) ? "[]" : "{}";
  const flat = `${open}${parts.join(", ")}${shut}`;
  if (flat.length < 90 && !flat.includes("\n")) return flat;
  const space = " ".repeat(indent + 4);
  return `${open}\n${parts.map((part) => `${space}${part},\n`).join("")}${" ".repeat(indent)}${shut}`;
}
