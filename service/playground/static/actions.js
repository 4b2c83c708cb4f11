// What the buttons do: answer the inputs, make labelled inputs cases.
import { ServerError } from "./client.js";
import { gatesOf, partsOf } from "./calibration.js";
import { digest } from "./digest.js";
import { outcomes, summary } from "./gate.js";
import { questionProblems, readDecided, wireQuestion } from "./questions.js";
import { client, count, failed, label, work } from "./session.js";
import { get, set } from "./store.js";

const answersKey = (state) => digest([state.version?.model, state.samples, state.questions.map(wireQuestion)]);
const isPending = (row, key) => row.input.trim() && (row.asked !== key || !row.decided);

/** Return how many inputs have no answer of the present version. */
export function pendingCount(state) {
  const key = answersKey(state);
  return state.inputs.reduce((count, row) => count + (isPending(row, key) ? 1 : 0), 0);
}

/** Answer all inputs that the present version has not answered. */
export async function answer() {
  const state = get();
  const problems = questionProblems(state.questions);
  set({ problems, notice: "" });
  if (problems.length) return;
  const key = answersKey(state);
  const rows = state.inputs.filter((row) => isPending(row, key));
  if (!rows.length) return;
  const parts = partsOf(state);
  const body = { model: state.version?.model, parts: parts.map(({ questions, gate }) => ({ questions: questions.map(wireQuestion), gate })), abmll: { samples: state.samples } };
  await work("answer", { total: rows.length }, async (signal) => {
    const { done, refused } = await ask(parts.flatMap(({ questions }) => questions), rows, body, signal, (found, done) =>
      set((now) => ({
        inputs: now.inputs.map((row) => (found.has(row.id) ? { ...row, ...found.get(row.id), asked: key } : row)),
        selected: now.selected ?? rows[0].id,
        busy: now.busy && { ...now.busy, done },
      })));
    set((now) => ({ history: now.history.map((entry) => (entry.model === state.version?.model ? { ...entry, ...ofVersion(now) } : entry)) }));
    const by = state.version ? label(state.version) : `${get().server?.model ?? "the base model"}, without cases,`;
    set({ notice: `${by} answered ${count(done - refused, "input")}${refused ? `; ${refused} could not be answered, and say why` : ""}.` });
  }, (error) => failed("answer", error));
}

/**
 * Ask about the inputs of rows, and return `{done, refused}`. `take` is given what was found since it
 * was called last, `{decided, model, problem}` by the id of the row, and how many are done.
 */
export async function ask(questions, rows, body, signal, take) {
  const found = new Map();
  let [shown, done, refused] = [0, 0, 0];
  const flush = () => {
    if (found.size) take(found, done);
    found.clear();
    shown = performance.now();
  };
  try {
    for await (const { index, decision, error } of client.decideAll(rows.map((row) => row.input), body, { signal })) {
      if (error && !isOfInput(error)) throw error;
      done += 1;
      refused += error ? 1 : 0;
      found.set(rows[index].id, error ? { decided: null, problem: error.message } : { decided: decidedOf(questions, decision), model: decision.model, problem: "" });
      if (performance.now() - shown > 150) flush();
    }
  } finally {
    flush();
  }
  return { done, refused };
}

function ofVersion(state) {
  const { total, given, labelled, right } = summary(outcomes(state.questions, state.inputs, "", gatesOf(state)), state.gate);
  return { total, answered: given, labelled, right };
}

const decidedOf = (questions, decision) =>
  Object.fromEntries(questions.map((question, i) => [question.id, readDecided(question, decision.answers[i])]));
const isOfInput = (error) => error instanceof ServerError && error.status === 400 && (error.param ?? "").startsWith("input");

/** Whether the input has a label, and is no case yet. */
export const isTeachable = (row) => !row.taught && Object.keys(row.answers).length > 0;

/** Make cases of labelled inputs, all or the one with this id. They count as seen from then on. */
export function teach(id) {
  set((now) => {
    const ready = now.inputs.filter((row) => isTeachable(row) && (!id || row.id === id));
    const made = ready.map((row) => ({ id: `c${row.id}`, input: row.input, answers: { ...row.answers } }));
    return {
      cases: [...now.cases.filter((row) => row.input.trim() || Object.keys(row.answers).length), ...made],
      inputs: now.inputs.map((row) => (ready.includes(row) ? { ...row, taught: true } : row)),
      notice: `${count(made.length, "labelled input")} became ${made.length === 1 ? "a case" : "cases"}. Learn again for the next version.`,
    };
  });
}

