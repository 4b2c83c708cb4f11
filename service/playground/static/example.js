// The built-in example: mails to a shop, with three questions.
const option = (value, description = "") => ({ value, description });

const QUESTIONS = [
  { id: "team", name: "team", kind: "choice", instructions: "Which team answers this mail?", options: [option("billing"), option("delivery"), option("technical")] },
  { id: "urgent", name: "urgent", kind: "predicate", instructions: "Does the customer need help today?", options: [] },
  { id: "anger", name: "anger", kind: "score", instructions: "How angry is the customer?", options: [option("calm"), option("annoyed"), option("furious")] },
];

const CASES = [
  ["I was charged twice for my March subscription.", "billing", "no", "annoyed"],
  ["The parcel was meant to arrive on Monday and is still not here.", "delivery", "no", "annoyed"],
  ["The app closes whenever I open the camera.", "technical", "no", "calm"],
  ["Why does my invoice show a fee I never agreed to? Outrageous!", "billing", "no", "furious"],
  ["The courier left my package with a neighbour I do not know.", "delivery", "no", "annoyed"],
  ["Since the update, exported files are empty. My talk is in an hour!", "technical", "yes", "annoyed"],
  ["Please refund the annual plan, I cancelled it last week.", "billing", "no", "calm"],
  ["Can I change the address of an order on its way? It ships today.", "delivery", "yes", "calm"],
  ["The search page only shows an error 500.", "technical", "no", "calm"],
  ["My card was debited although the payment failed. I need the money now.", "billing", "yes", "annoyed"],
  ["Third broken delivery in a row. You are a joke!", "delivery", "no", "furious"],
  ["Nothing works since this morning and nobody answers. Fix it now!", "technical", "yes", "furious"],
];

const INPUTS = [
  ["You took the money for two months at once.", "billing", "no", "annoyed"],
  ["My order arrived at the wrong house.", "delivery", "no", "calm"],
  ["The page stays white when I press save, and I present at noon.", "technical", "yes", "annoyed"],
  ["Does the price on the bill include tax?", "billing", "no", "calm"],
  ["Where is my parcel? I fly tomorrow morning!", "delivery", "yes", "annoyed"],
  ["Do you have a job for me?"],
  ["It is broken again. I have had enough of you!"],
];

const rows = (table, prefix) =>
  table.map(([input, ...answers], index) => ({
    id: `${prefix}${index}`,
    input,
    answers: Object.fromEntries(answers.map((answer, i) => [QUESTIONS[i].id, answer])),
  }));

export const example = () => structuredClone({ questions: QUESTIONS, cases: rows(CASES, "case"), inputs: rows(INPUTS, "input"), name: "mails" });
