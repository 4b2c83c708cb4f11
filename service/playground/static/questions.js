// Questions of the page: their forms on the wire, how a text is read as an answer, what is wrong.
//
// An answer of a case is a text (an option; `yes` or `no`), null (the input does not tell), or
// absent. A text that is no option stays, so that the table can show it as wrong.

export const KINDS = { predicate: "yes or no", choice: "one of several", score: "a level" };
export const newId = () => Math.random().toString(36).slice(2, 10);
export const newQuestion = (kind = "predicate", name = "") => ({
  id: newId(), name, kind, instructions: "", options: kind === "predicate" ? [] : ["", ""].map((value) => ({ value, description: "" })),
});

export const optionsOf = (question) =>
  question.kind === "predicate" ? ["yes", "no"] : question.options.map((option) => option.value);

const CANNOT_TELL = new Set(["?", "null", "cannot tell"]);
const YES = new Set(["yes", "y", "true", "1"]);
const NO = new Set(["no", "n", "false", "0"]);

/** Read a cell of a file as an answer; undefined where it is empty. */
export function readAnswer(question, cell) {
  if (cell === null) return null;
  const text = String(cell ?? "").trim();
  if (!text) return undefined;
  const options = optionsOf(question);
  const lower = text.toLowerCase();
  const same = options.find((option) => option === text) ?? options.find((option) => option.toLowerCase() === lower);
  if (same !== undefined) return same;
  if (CANNOT_TELL.has(lower)) return null;
  if (question.kind === "predicate") return YES.has(lower) ? "yes" : NO.has(lower) ? "no" : text;
  if (question.kind === "score" && /^\d$/.test(text)) return options[Number(text)] ?? text;
  return text;
}

export const isKnown = (question, answer) => answer == null || optionsOf(question).includes(answer);

export function wireQuestion(question) {
  const { kind: type, name, instructions } = question;
  if (type === "predicate") return { type, name, instructions };
  const described = question.options.map(({ value, description }) => ({
    [type === "choice" ? "value" : "label"]: value,
    ...(description && { description }),
  }));
  return { type, name, instructions, [type === "choice" ? "choices" : "levels"]: described };
}

const wireAnswer = (question, answer) =>
  answer === null || question.kind !== "predicate" ? answer : answer === "yes";

/** Return the cases that say something, and their rows. */
export function wireCases(questions, rows) {
  const kept = rows.filter((row) => questions.some((q) => row.answers[q.id] !== undefined));
  const cases = kept.map((row) => ({
    input: row.input,
    answers: Object.fromEntries(
      questions.filter((q) => row.answers[q.id] !== undefined).map((q) => [q.name, wireAnswer(q, row.answers[q.id])]),
    ),
  }));
  return { cases, kept };
}

/** Return an answer of a decision as `{options, probabilities, top, confidence, score, details}`. */
export function readDecided(question, answer) {
  const probabilities =
    answer.type === "predicate" ? [answer.probability, 1 - answer.probability] : answer.probabilities.map((p) => p.probability);
  const top = probabilities.indexOf(Math.max(...probabilities));
  const confidence = answer.confidence ?? probabilities[top];
  return { options: optionsOf(question), probabilities, top, confidence, score: answer.score, details: answer.abmll };
}

/** Return what is wrong with the questions, as `{part, id, message}`. */
export function questionProblems(questions) {
  const problems = [];
  const say = (question, message) => problems.push({ part: "questions", id: question.id, message });
  for (const question of questions) {
    const options = optionsOf(question);
    const blank = options.filter((option) => !option.trim()).length;
    const double = options.find((option, i) => option && options.indexOf(option) < i);
    const noun = question.kind === "score" ? "level" : "option";
    if (!question.name.trim()) say(question, "Give this question a name: cases say by it what they answer.");
    else if (questions.find((q) => q.name === question.name) !== question)
      say(question, `Another question is called “${question.name}” too. Rename one of them.`);
    if (!question.instructions.trim()) say(question, "Write what is asked about the input.");
    if (blank) say(question, `${noun === "level" ? "A level" : "An option"} is empty: fill it in or remove it.`);
    else if (options.length < 2) say(question, `A question needs at least two ${noun}s.`);
    if (double !== undefined) say(question, `Two ${noun}s are called “${double}”. Rename one of them.`);
    if (question.kind === "score" && options.length > 10) say(question, `A scale has at most 10 levels; this one has ${options.length}.`);
  }
  if (!questions.length) problems.push({ part: "questions", message: "Add a question first." });
  return problems;
}

/** Return what is wrong with rows of cases, or of labelled inputs. */
export function rowProblems(questions, rows, part) {
  const problems = [];
  rows.forEach((row, index) => {
    for (const question of questions) {
      const answer = row.answers[question.id];
      if (!isKnown(question, answer))
        problems.push({ part, id: row.id, column: question.id, message: `Row ${index + 1}: “${answer}” is no answer to “${question.name}”. It has ${listed(optionsOf(question))}.` });
    }
  });
  return problems;
}

const listed = (texts) => texts.slice(0, 6).map((text) => `“${text}”`).join(", ") + (texts.length > 6 ? ", …" : "");
