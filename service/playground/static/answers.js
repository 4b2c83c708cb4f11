// The answers as a table to save.
import { gatesOf } from "./calibration.js";
import { decide } from "./gate.js";

/** Return rows of cells: the input, its other columns, and for each question what was answered. */
export function answersTable(state) {
  const { questions, inputs } = state;
  const gates = gatesOf(state);
  const kept = [...new Set(inputs.flatMap((row) => Object.keys(row.kept ?? {})))];
  const names = questions.flatMap(({ name }) => [name, `${name}.confidence`, `${name}.decision`, `${name}.reason`, `${name}.answerable`, `${name}.typicality`, `${name}.standard_error`, `${name}.right_answer`]);
  const header = ["input", ...kept, ...names, "model", "problem"];
  const rows = inputs.map((row) => [
    row.input,
    ...kept.map((name) => row.kept?.[name]),
    ...questions.flatMap((question) => cells(row.decided?.[question.id], row.answers[question.id], gates[question.id])),
    row.decided ? row.model : "",
    row.problem,
  ]);
  return [header, ...rows];
}

const number = (value) => (value == null ? "" : Number(value.toPrecision(6)));

function cells(decided, known, gate) {
  const label = known === null ? "cannot tell" : known;
  if (!decided) return ["", "", "", "", "", "", "", label];
  const { given, reason } = decide(decided, gate);
  const { answerable, typicality, standard_error: error } = decided.details;
  return [decided.options[decided.top], number(decided.confidence), given ? "answer" : "abstain", reason, number(answerable), number(typicality), number(error), label];
}
