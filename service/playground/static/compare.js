// Compare two versions on the inputs: what each answers, and which is right.
import { ask } from "./actions.js";
import { digest } from "./digest.js";
import { outcomes, summary } from "./gate.js";
import { wireQuestion } from "./questions.js";
import { failed, work } from "./session.js";
import { get, set } from "./store.js";

export const BASE = { model: "", name: "", adapterId: "without cases" };

const keyOf = ({ questions, samples }, model) => digest([model, samples, questions.map(wireQuestion)]);
const ofModel = (state, model) => state.compared[keyOf(state, model)] ?? {};

/** Return how many inputs one of these models has not answered for a comparison. */
export const missing = (state, models) => models.reduce((sum, model) => sum + unanswered(state, model).length, 0);

function unanswered(state, model) {
  const found = ofModel(state, model);
  return state.inputs.filter((row) => row.input.trim() && !(row.id in found));
}

/** Have each model answer the inputs that it has not answered; the table of answers stays as it is. */
export function compare(models) {
  const state = get();
  const body = { questions: state.questions.map(wireQuestion), abmll: { samples: state.samples } };
  return work("compare", { total: missing(state, models) }, async (signal) => {
    let before = 0;
    for (const model of models) {
      const key = keyOf(state, model);
      const rows = unanswered(state, model);
      const { done } = await ask(state.questions, rows, { ...body, ...(model && { model }) }, signal, (found, count) =>
        set((now) => ({
          compared: { ...now.compared, [key]: { ...now.compared[key], ...Object.fromEntries([...found].map(([id, { decided }]) => [id, decided])) } },
          busy: now.busy && { ...now.busy, done: before + count },
        })));
      before += done;
    }
  }, (error) => failed("compare", error));
}

/** Return the inputs with the answers of a model in place of those of the table. */
export function answeredBy(state, model) {
  const found = ofModel(state, model);
  return state.inputs.map((row) => ({ ...row, decided: found[row.id] ?? null }));
}

/**
 * Return `{sides, questions, differing, only}`: the numbers of each model, at all and by question,
 * the ids of inputs that they answer differently, and how often only the first or the second is right.
 */
export function comparison(state, models) {
  const rows = models.map((model) => answeredBy(state, model));
  const of = (side, id) => summary(outcomes(state.questions, side, id), state.gate);
  const top = (row, { id }) => row.decided?.[id]?.options[row.decided[id].top];
  const pairs = state.inputs.map((_, i) => rows.map((side) => side[i])).filter((pair) => pair.every((row) => row.decided));
  const only = [0, 0];
  for (const [left, right] of pairs)
    for (const question of state.questions) {
      const known = left.answers[question.id];
      const hits = [left, right].map((row) => top(row, question) === known);
      if (known != null && !left.taught && hits[0] !== hits[1]) only[hits[0] ? 0 : 1] += 1;
    }
  return {
    sides: rows.map((side) => of(side, "")),
    questions: state.questions.map(({ id, name }) => ({ name, sides: rows.map((side) => of(side, id)) })),
    differing: pairs.filter(([left, right]) => state.questions.some((question) => top(left, question) !== top(right, question))).map(([row]) => row.id),
    only,
  };
}
