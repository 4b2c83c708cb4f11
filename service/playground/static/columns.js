// What the columns of a table mean: the input, answers to questions, and what is only kept.
import { newId, newQuestion, readAnswer } from "./questions.js";

const INPUTS = ["input", "text", "message", "body", "content", "ticket", "mail", "email", "comment", "sentence"];
const LABELS = ["output", "label", "answer", "class"];
const MOST_NEW_OPTIONS = 20;

const plain = (cell) => String(cell ?? "").trim().toLowerCase();
const shown = (cell) => (cell == null ? "" : typeof cell === "object" ? JSON.stringify(cell) : String(cell));

/**
 * Return `{rows, questions, input, read, kept}`: the rows of a table, the questions that it adds,
 * and the names of its columns by their use. With `grow`, a column of repeated values that no
 * question has becomes a question.
 */
export function understand({ header, rows: table }, questions, { grow }) {
  const names = questions.map((question) => plain(question.name));
  const known = (cell) => [...INPUTS, ...LABELS].includes(plain(cell)) || names.includes(plain(cell));
  const first = header ?? (table[0].some(known) ? table[0] : null);
  const rows = header || !first ? table : table.slice(1);
  const width = rows.reduce((most, row) => Math.max(most, row.length), first?.length ?? 0);
  const titles = Array.from({ length: width }, (_, i) => (first ? shown(first[i]).trim() || `column ${i + 1}` : i ? questions[i - 1]?.name ?? `column ${i + 1}` : "input"));
  const at = Math.max(0, titles.findIndex((title) => INPUTS.includes(plain(title))));
  const uses = titles.map((title, index) => {
    if (index === at) return "input";
    const question = questions.find((q) => plain(q.name) === plain(title) && q.name.trim());
    if (question) return question;
    if (questions.length === 1 && LABELS.includes(plain(title))) return questions[0];
    return (grow && questionOf(title, rows.map((row) => row[index]))) || "kept";
  });
  const isQuestion = (use) => typeof use === "object";
  const read = rows.map((row) => {
    const made = { id: newId(), input: shown(row[at]), answers: {} };
    uses.forEach((use, index) => {
      if (isQuestion(use)) {
        const answer = readAnswer(use, row[index]);
        if (answer !== undefined) made.answers[use.id] = answer;
      } else if (use === "kept" && !grow) (made.kept ??= {})[titles[index]] = shown(row[index]);
    });
    return made;
  });
  return {
    rows: read.filter((row) => row.input.trim()),
    questions: uses.filter((use) => isQuestion(use) && !questions.includes(use)),
    input: titles[at],
    read: titles.filter((_, index) => isQuestion(uses[index])),
    kept: titles.filter((_, index) => uses[index] === "kept"),
  };
}

/** Return a question whose answers are the values of a column, if these look like answers. */
function questionOf(title, cells) {
  const values = [...new Set(cells.filter((cell) => cell !== null).map((cell) => shown(cell).trim()).filter((text) => text && text !== "?"))];
  const filled = cells.filter((cell) => shown(cell).trim()).length;
  if (values.length < 2 || values.length > MOST_NEW_OPTIONS || values.length > filled * 0.8) return null;
  const words = new Set(["yes", "no", "true", "false", "y", "n"]);
  const name = title.replace(/\s+/g, "_");
  if (values.every((value) => words.has(value.toLowerCase()))) return { ...newQuestion("predicate", name), instructions: `${title}?` };
  const options = values.sort().map((value) => ({ value, description: "" }));
  return { ...newQuestion("choice", name), instructions: `Which ${title} fits?`, options };
}
