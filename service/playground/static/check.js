// Check the version by its own cases: the verdict on it, and cases whose labels look wrong.
import { chosenCases } from "./learn.js";
import { percent } from "./parts.js";
import { client, failed, label, work } from "./session.js";
import { get, set } from "./store.js";

const FOLDS = 4; // the default, up to 16 fits, takes minutes on a CPU
const VERDICTS = {
  healthy: "Healthy: it answers cases that it has not seen better than guessing does.",
  weak: "Weak: these cases do not show that it can be relied on.",
  unfit: "Unfit: it answers no better than guessing.",
};

/** Ask the server for the diagnosis of the present version, whose cases are those of the page. */
export const check = () =>
  work("check", {}, async (signal) => {
    const state = get();
    const found = await client.diagnose(state.version.adapterId, { folds: FOLDS }, { signal });
    set({ checked: readDiagnosis(found, state), notice: `${label(state.version)} is checked.` });
  }, (error) => failed("check", error));

/** Return `{adapterId, questions, findings}` of a diagnosis in words; a finding has the id of its case. */
export function readDiagnosis(found, state) {
  const examples = examplesOf(state);
  return {
    adapterId: found.adapter_id,
    questions: found.questions.map(({ name, verdict, held_out: own, guess, reasons }) => ({
      name, verdict, text: VERDICTS[verdict], reasons: reasons.map((reason) => reason.message),
      right: own ? `Right for ${own.correct} of ${own.n} held-out cases (${percent(own.low)} to ${percent(own.high)}); guessing is right for ${percent(guess.accuracy)}.` : "",
    })),
    findings: found.questions.flatMap(({ name, suspects, conflicts, unseen_options: unseen }) => [
      ...suspects.map(({ index, label: given, answer, probability }) => ({
        id: examples[index]?.id,
        message: `Row ${examples[index]?.number}, ${name}: labelled “${given}”, but the other cases say “${answer}” (${percent(probability)}). Is the label right?`,
      })),
      ...conflicts.map(({ indices, labels }) => ({
        id: examples[indices[0]]?.id,
        message: `Rows ${indices.map((index) => examples[index]?.number).join(" and ")}, ${name}: one input with different answers, ${labels.map((text) => `“${text}”`).join(" and ")}.`,
      })),
      ...(unseen.length ? [{ message: `${name}: no case has the answer ${unseen.map((text) => `“${text}”`).join(" or ")}.` }] : []),
    ]),
  };
}

/** Return the case of each example as the server counts them: case by case, in the order of the questions. */
function examplesOf(state) {
  return chosenCases(state).flatMap(({ id, answers }) => {
    const number = state.cases.findIndex((row) => row.id === id) + 1;
    return state.questions.filter((question) => answers[question.id] !== undefined).map(() => ({ id, number }));
  });
}
